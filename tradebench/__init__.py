"""A workbench for quantitative trading: from a notebook to a supervised live agent, without a rewrite

Modules:

- `tradebench.backtest.canvas`: The house style of all figures, and the thinning that keeps a million bars small without losing an extreme.
- `tradebench.backtest.metrics`: What a run earned, what it risked and what it paid: plain functions of arrays, each with its definition and source.
- `tradebench.backtest.plots`: Figures of a result in one house style: the overview, the parts, and a heat map of parameters.
- `tradebench.backtest.report`: Tables of a result, and one self-contained HTML page that a reviewer can open anywhere.
- `tradebench.cli.shell`: The frame of the command `tradebench`: one line for each error, exit codes that scripts can trust, and nothing imported that a verb does not need.
- `tradebench.features.volatility`: Realised volatility from closes, ranges and gaps, the exponentially weighted one, and the Hurst exponent.
- `tradebench.validation.sharpe`: How sure a Sharpe ratio is: its standard error, the probability that it beats a benchmark, and the track record that this needs.
- `tradebench.validation.var`: VaR and CVaR by six models, one bar ahead and rolled through a history so that no forecast has seen what it forecasts."""

from importlib import import_module

__version__ = "0.1.0"

_WHERE = {
    "backtest.costs": ("Costs",),
    "backtest.exchange": ("Options",),
    "backtest.result": ("Result",),
    "backtest.sweep": ("sweep", "metric"),
    "backtest.runs": ("runs", "load_run", "compare", "verify", "run_backtest"),
    "data.bars": ("Bars", "prepare"),
    "data.instruments": ("Instrument", "instrument"),
    "data.simulator": ("simulate",),
    "data.sources": ("load",),
    "errors": ("TradebenchError", "SettingsError", "DataError", "StrategyError", "EngineError", "RunError"),
    "params": ("param",),
    "registry": ("find", "catalogue"),
    "risk.sizing": ("Sizing", "Limits", "fraction", "quantity", "volatility", "kelly"),
    "strategies.follow": ("pandas_strategy",),
    "validation.cpcv": ("cpcv",),
    "validation.returns": ("returns_of",),
    "validation.splits": ("walk_forward_splits", "purged_kfold", "cpcv_splits"),
    "validation.walkforward": ("walkforward",),
    "strategies.strategy": ("strategy", "column", "higher", "decide", "long_if", "short_if", "hold", "flat"),
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted([*_HOME, "backtest"])


def __getattr__(name):
    if name == "backtest":
        return import_module("tradebench.backtest")  # a package that can be called
    if name not in _HOME:
        raise AttributeError(f"module 'tradebench' has no attribute {name!r}")
    value = getattr(import_module(f"tradebench.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
