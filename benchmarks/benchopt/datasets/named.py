"""The problems of bilevax.testing.problems, drawn from fixed seeds."""

from benchopt import BaseDataset


class Dataset(BaseDataset):
    """One of them, by name."""

    name = "named"
    requirements = ("pip::bilevax",)
    parameters = {"problem": ["quadratic-10-b32", "quadratic-1000-b32", "ridge", "logistic-20000x20-0.1"]}

    def get_data(self):
        return {"problem": self.problem}
