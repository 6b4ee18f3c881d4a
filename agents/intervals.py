"""Estimates with their intervals as text, for the tables of studies."""


def with_interval(estimate: dict[str, float], form: str, factor: float = 1) -> str:
    """Format {"value", "low", "high"}, times a factor, as "value [low, high]".

    >>> with_interval({"value": 0.5, "low": 0.41, "high": 0.6}, "{:.0f}", 100)
    '50 [41, 60]'
    """
    low, high = sorted(factor * estimate[name] for name in ("low", "high"))
    return f"{form.format(factor * estimate['value'])} [{form.format(low)}, {form.format(high)}]"
