"""The inputs of the campaign by area: damaged files, odd values, odd places.

Each function makes one input in an empty folder, from a random number generator and the valid
things of `campaign.material`.
"""

from campaign.inputs.commands import options, outputs
from campaign.inputs.data import annotations, datasets
from campaign.inputs.foreign import foreign
from campaign.inputs.networks import checkpoints, models
from campaign.inputs.pictures import images, masks
from campaign.inputs.recipes import recipes

#: Areas, and the share of each of the inputs.
AREAS = {
    images: 0.17,
    masks: 0.08,
    recipes: 0.14,
    models: 0.15,
    foreign: 0.1,
    checkpoints: 0.1,
    annotations: 0.08,
    datasets: 0.06,
    options: 0.07,
    outputs: 0.05,
}
