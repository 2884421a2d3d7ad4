"""What kind of JAX model a user has given, told without importing JAX."""

PAIR, EQUINOX, NNX = "a pair of init and apply", "an equinox module", "a flax.nnx module"


def kind(model: object) -> str | None:
    """One of the three; None for anything else. A flax.linen module is a pair, by its methods."""
    if isinstance(model, type):
        return None
    modules = {cls.__module__ for cls in type(model).__mro__}
    if any(name.startswith("flax.nnx") for name in modules):
        return NNX
    if any(name.partition(".")[0] == "equinox" for name in modules):
        return EQUINOX
    pair = model if isinstance(model, tuple) else (getattr(model, "init", None), getattr(model, "apply", None))
    return PAIR if len(pair) == 2 and all(map(callable, pair)) else None
