"""`python -m tradebench`: the same as the command `tradebench`."""

from tradebench.cli.main import main

if __name__ == "__main__":
    main()
