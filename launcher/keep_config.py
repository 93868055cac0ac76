"""The `keep` section of a configuration."""

from __future__ import annotations

from typing import Literal

from entroloop.data.config import Section


class KeepConfig(Section):
    """Files that stay on disk. `needed` deletes a file once no later phase can read it, counting the phases of
    generations that may still be added to a finished run. Training sets, weights and measures always stay."""

    samples: Literal["all", "needed"] = "all"
    """Shards of samples. The first shard of each generation stays for the report. With `data.selected=index`, all
    shards that training sets refer to stay as well."""
    features: Literal["all", "needed"] = "all"
    """Features of samples."""
    checkpoints: Literal["none", "all"] = "none"
    """Checkpoints of generations whose training is finished: `none`, or `all` checkpoints that `train.keep` left."""
