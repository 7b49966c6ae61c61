"""Costs, exchange, engine, results and sweeps. The package itself can be called: `tradebench.backtest(strategy, bars, ...)`."""

import sys
from types import ModuleType


class _Callable(ModuleType):
    # `tradebench.backtest` is both this package and the function that everybody wants under that name.
    def __call__(self, *args, **kwargs):
        from .simulation import backtest

        return backtest(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
