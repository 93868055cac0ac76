"""A tour of entroloop from Python, in cells for Jupyter, VS Code or Spyder. It takes some seconds on a CPU."""

# %% A configuration: a packaged one (or a YAML file), and changes to it
import numpy as np

import entroloop
from entroloop.data.errors import UserError
from entroloop.selection import kl_entropy

print(entroloop.__version__)
small = {
    "name": "tour",
    "generations": 2,
    "data.size": 64,
    "data.heldout": 64,
    "data.labelled": 0,
    "network.channels": [8, 8],
    "train.kimg": 1,
    "sample.steps": 6,
    "selection.encoder": "pixel",
    "evaluation.encoders": ["pixel"],
}
config = entroloop.Config.load("digits", small)

# %% The loop: train, sample, select, repeat. A second call continues what a first one left, or does nothing
run = entroloop.run(config)
assert run.finished

# %% Measures: models, and a pandas frame where pandas is installed
for row in run.rows():
    print(row.generation, row.value("pixel", "frechet_distance"), row.value("pixel", "generalization_score"))
try:
    print(run.frame().set_index("generation").filter(["frechet_distance", "training_entropy", "real_share"]))
except UserError as error:  # pandas is optional
    print(error)

# %% Samples, their features and the sets they were chosen for, as arrays
again = entroloop.load_run(config.run_folder)  # the same run, in another process or on another day
samples = again.samples(1).all()  # uint8 [N, C, H, W]
features = again.features(1, "pixel")  # float32 [N, D]
print(samples.shape, features.shape, kl_entropy(features).nats)
origin = again.training_set(1).provenance
print("generation that drew each training image:", np.unique(origin.generation, return_counts=True))

# %% New samples, which the run does not keep
drawn = entroloop.sample(again, 8, seed=1)
print(drawn.samples.shape, drawn.samples.dtype, drawn.labels)

# %% The network: a torch module; of images, the diffusers UNet is in the run's folder, too
network = again.weights(1)
print(sum(p.numel() for p in network.parameters()), "weights")
