"""A workbench for quantitative trading: from a notebook to a supervised live agent, without a rewrite

Modules:

- `tradebench.backtest.canvas`: The house style of all figures, and the thinning that keeps a million bars small without losing an extreme.
- `tradebench.backtest.metrics`: What a run earned, what it risked and what it paid: plain functions of arrays, each with its definition and source.
- `tradebench.backtest.plots`: Figures of a result in one house style: the overview, the parts, and a heat map of parameters.
- `tradebench.backtest.report`: Tables of a result, and one self-contained HTML page that a reviewer can open anywhere.
- `tradebench.features.volatility`: Realised volatility from closes, ranges and gaps, the exponentially weighted one, and the Hurst exponent."""

__version__ = "0.1.0"
