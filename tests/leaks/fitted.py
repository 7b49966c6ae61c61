"""Scalers and models that were fitted on rows to come; see features.py for the table."""

import numpy as np
import pandas as pd

CASES = dict(
    scaler_of_all=dict(column="volume", inputs=("volume",), ahead="end", bar=0),
    components_of_all=dict(column="output 0", inputs=("close", "volume"), ahead="end"),
    regression_of_all=dict(column="forecast", inputs=("close",), ahead="end"),
    least_squares_of_all=dict(column="forecast", inputs=("close",), ahead="end"),
    labels_that_reach_over=dict(column="forecast", inputs=("close",)),
)


def _lags(bars):
    ret = np.log(bars.close).diff()
    return pd.DataFrame({f"lag{k}": ret.shift(k) for k in range(3)}).dropna()


def scaler_of_all(bars):
    from sklearn.preprocessing import StandardScaler

    return pd.DataFrame(StandardScaler().fit_transform(bars[["volume"]]), bars.index, ["volume"])


def scaler_of_all_clean(bars):
    "Fitted on the first fifty rows, used after them."
    from sklearn.preprocessing import StandardScaler

    if len(bars) <= 50:
        return pd.DataFrame(np.nan, bars.index, ["volume"])
    fitted = StandardScaler().fit(bars[["volume"]].iloc[:50])
    return pd.DataFrame(fitted.transform(bars[["volume"]].iloc[50:]), bars.index[50:], ["volume"])


def components_of_all(bars):
    "First principal component of two columns, its axes those of all rows."
    from sklearn.decomposition import PCA

    x = np.log(bars[["close", "volume"]])
    return np.abs(PCA(1).fit_transform(x))[:, 0]


def components_of_all_clean(bars):
    from sklearn.decomposition import PCA

    x, out = np.log(bars[["close", "volume"]]).to_numpy(), np.full(len(bars), np.nan)
    if len(bars) > 50:
        out[50:] = np.abs(PCA(1).fit(x[:50]).transform(x[50:]))[:, 0]
    return out


def regression_of_all(bars):
    "A forecast of the next return, by a model that has seen all returns."
    from sklearn.linear_model import LinearRegression

    x = _lags(bars)
    y = x.lag0.shift(-1)
    if len(x) < 6:
        return pd.DataFrame(dict(forecast=np.nan), bars.index)
    model = LinearRegression().fit(x[:-1], y[:-1])
    return pd.DataFrame(dict(forecast=model.predict(x)), x.index)


def regression_of_all_clean(bars):
    "Fitted on the first hundred rows, used after them."
    from sklearn.linear_model import LinearRegression

    x = _lags(bars)
    y = x.lag0.shift(-1)
    if len(x) < 101:
        return pd.DataFrame(dict(forecast=np.nan), bars.index)
    model = LinearRegression().fit(x[:99], y[:99])
    return pd.DataFrame(dict(forecast=model.predict(x[100:])), x.index[100:])


def least_squares_of_all(bars):
    x = _lags(bars)
    if len(x) < 6:
        return pd.DataFrame(dict(forecast=np.nan), bars.index)
    a, y = x.to_numpy(), x.lag0.to_numpy()
    weights = np.linalg.lstsq(a[:-1], y[1:], rcond=None)[0]
    return pd.DataFrame(dict(forecast=a @ weights), x.index)


def least_squares_of_all_clean(bars):
    "Fitted anew on each row, on the rows before it."
    x = _lags(bars)
    a, y = x.to_numpy(), x.lag0.to_numpy()
    out = np.full(len(x), np.nan)
    for t in range(60, len(x), 1):
        weights = np.linalg.lstsq(a[t - 60 : t], y[t - 59 : t + 1], rcond=None)[0]
        out[t] = a[t] @ weights
    return pd.DataFrame(dict(forecast=out), x.index)


def _walked(bars, gap, horizon=5, every=25):
    "A model fitted every 25 rows on the rows before; its labels are returns over the next five"
    x = _lags(bars)
    a, y = x.to_numpy(), np.log(bars.close).diff(horizon).shift(-horizon).reindex(x.index).to_numpy()
    out = np.full(len(x), np.nan)
    for t in range(50, len(x), every):
        train = slice(0, t - gap)
        good = ~np.isnan(y[train])
        weights = np.linalg.lstsq(a[train][good], y[train][good], rcond=None)[0]
        out[t : t + every] = a[t : t + every] @ weights
    return pd.DataFrame(dict(forecast=out), x.index)


def labels_that_reach_over(bars):
    "Walk-forward, but the last labels before each fit reach past it: nothing was purged."
    return _walked(bars, gap=0)


def labels_that_reach_over_clean(bars):
    return _walked(bars, gap=5)
