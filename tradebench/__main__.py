"""`python -m tradebench` is the same as the command `tradebench`."""

from .cli.main import main

if __name__ == "__main__":
    main()
