"""A workbench for quantitative trading: from a notebook to a supervised live agent, without a rewrite

Modules:

- `tradebench.backtest.metrics`: What a run earned, what it risked and what it paid: plain functions of arrays, each with its definition and source."""

__version__ = "0.1.0"
