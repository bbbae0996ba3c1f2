"""Saved networks in transformers: importing this module registers them.

    import fsanet.hf, transformers
    segment = transformers.pipeline("image-segmentation", model=FOLDER)

`transformers.AutoModelForSemanticSegmentation`, `AutoConfig` and `AutoImageProcessor` open the
folders of ``save_pretrained``, too. Nothing in a folder is run: `fsanet.load_model` reads it.

Shapes: B images, C classes, (H, W) image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsanet.convert import load_model
from fsanet.data.images import read_image
from fsanet.errors import InputError
from fsanet.models.saved_folder import find_folder
from fsanet.models.saving import (
    MODEL_TYPE,
    SegmentationNetwork,
    check_normalisation,
    normalise,
)

try:
    import transformers
    from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
    from transformers.modeling_outputs import SemanticSegmenterOutput
    from transformers.models.auto import modeling_auto
except ImportError as error:
    raise InputError(f"fsanet.hf needs {error.name}: pip install 'fsanet[segformer]'") from error

__all__ = ["FsaConfig", "FsaForSemanticSegmentation", "FsaImageProcessor"]


class FsaConfig(transformers.PreTrainedConfig):
    """The ``config.json`` of a saved network, with the names of its classes for transformers.

    Attributes:
        saved: the content of the file.
    """

    model_type = MODEL_TYPE
    saved: dict[str, Any] | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make the config of a ``config.json``; see `transformers.PreTrainedConfig.from_dict`."""
        unused = kwargs.pop("return_unused_kwargs", False)
        classes = config_dict.get("classes")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise InputError("config.json: classes is no list of names; save the network again")
        saved = {name: value for name, value in config_dict.items() if not name.startswith("_")}
        config = cls(
            saved=saved,
            id2label=dict(enumerate(classes)),
            label2id={name: index for index, name in enumerate(classes)},
        )
        return (config, kwargs) if unused else config

    def to_dict(self) -> dict[str, Any]:
        """The content of the file, so that ``save_pretrained`` writes what was read."""
        return super().to_dict() if self.saved is None else copy.deepcopy(self.saved)

    to_diff_dict = to_dict


class FsaForSemanticSegmentation(transformers.PreTrainedModel):
    """A network of fsanet as transformers calls it: ``model(pixel_values)["logits"]``.

    Attributes:
        network: the network itself.
    """

    config_class = FsaConfig
    main_input_name = "pixel_values"

    def __init__(self, config: FsaConfig, network: nn.Module | None = None) -> None:
        super().__init__(config)
        if network is None:
            raise InputError("open a saved network with from_pretrained; a config has no weights")
        self.network: Any = network

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, source: str | Path, *args: Any, config: FsaConfig | None = None, **options: Any
    ) -> Self:
        """Open a folder of ``save_pretrained``, or a hub id; see `fsanet.load_model`.

        Args:
            source: the folder or the hub id.
            config: ignored: the folder's own is read, and checked.
            **options: ``revision``, ``cache_dir``, ``force_download``, ``local_files_only`` and
                ``token`` of the hub, and ``dtype``; others are ignored.

        Raises:
            InputError: no network for semantic segmentation in it, or no such dtype.
        """
        dtype = options.get("dtype", options.get("torch_dtype"))
        if isinstance(dtype, str) and dtype != "auto":
            named, dtype = dtype, getattr(torch, dtype, None)
            if not isinstance(dtype, torch.dtype):
                raise InputError(f"dtype={named!r}: give one of torch, such as bfloat16")
        names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        hub = {name: options[name] for name in names if options.get(name) is not None}
        network: Any = load_model(find_folder(source, **hub), task="semantic")
        if not isinstance(network, SegmentationNetwork):
            raise InputError(f"{source}: an exported network; give the folder it came from")
        content: Any = network._hub_mixin_config
        model: Any = cls(FsaConfig.from_dict(content | {"model_type": MODEL_TYPE}), network)
        if isinstance(dtype, torch.dtype):
            model = model.to(dtype)
        return model.eval()

    def save_pretrained(self, save_directory: Any, **options: Any) -> None:  # type: ignore[override]
        """Save the network as `fsanet.FsaNet.save_pretrained` does.

        Args:
            save_directory: the folder.
            **options: of transformers; ``is_main_process=False`` saves nothing, others are ignored.

        Raises:
            InputError: ``push_to_hub`` is asked for, which `push_to_hub` itself does.
        """
        if options.get("push_to_hub"):
            raise InputError("save_pretrained does not upload; call model.network.push_to_hub")
        if options.get("is_main_process", True):
            self.network.save_pretrained(save_directory)

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **unused: Any
    ) -> SemanticSegmenterOutput:
        """Normalised images (B, 3, H, W), and class ids (B, H, W) for a loss; 255 is ignored.

        Returns:
            A dict-like result with ``logits`` (B, C, H, W), and ``loss`` if there are labels.
        """
        if pixel_values.device.type == "cpu":  # as `SegmentationNetwork.normalise` gives them
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        logits = self.network(pixel_values)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.float(), labels.long(), ignore_index=255)
        return SemanticSegmenterOutput(loss=loss, logits=logits)


class FsaImageProcessor(BaseImageProcessor):
    """Images as the network takes them: normalised, at their own size.

    Args:
        image_mean, image_std: one value per channel, for images in 0..1.
        bgr: give channels in the order blue, green, red.

    Raises:
        InputError: other values, such as those of a damaged ``preprocessor_config.json``.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(
        self,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        bgr: bool = False,
        **unused: Any,
    ) -> None:
        super().__init__()  # it would set any name in the file as an attribute
        try:
            mean, std = check_normalisation(image_mean, image_std, len(image_mean))
        except (TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, InputError) else "no numbers"
            raise InputError(f"image_mean, image_std: {reason}") from error
        if not isinstance(bgr, bool):
            raise InputError(f"bgr={bgr!r}: give true or false")
        self.image_mean, self.image_std, self.bgr = list(mean), list(std), bgr

    def preprocess(
        self, images: Any, return_tensors: str | None = None, **unused: Any
    ) -> BatchFeature:
        """Normalise images of one size.

        Args:
            images: one, or a list: whatever `fsanet.data.images.read_image` takes.
            return_tensors: ignored; tensors of torch are returned.

        Returns:
            ``pixel_values``, float32 (B, 3, H, W).

        Raises:
            InputError: an unreadable image, or images of several sizes.
        """
        images = list(images) if isinstance(images, list | tuple) else [images]
        pixels = [read_image(image) for image in images]
        sizes = {one.shape[1:] for one in pixels}
        if len(sizes) > 1:
            raise InputError(f"images of {len(sizes)} sizes in one batch; give them one by one")
        x = normalise(torch.stack(pixels), self.image_mean, self.image_std, bgr=self.bgr)
        return BatchFeature({"pixel_values": x})

    __call__ = preprocess  # type: ignore[assignment]

    def post_process_semantic_segmentation(
        self, outputs: Any, target_sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """Class ids int64 (H, W) of each image, resized to ``target_sizes`` if these are given."""
        logits = outputs["logits"].float()
        if target_sizes is None:
            return list(logits.argmax(1))
        maps = []
        for one, size in zip(logits, target_sizes, strict=True):
            if tuple(one.shape[1:]) != tuple(size):
                one = F.interpolate(one[None], tuple(size), mode="bilinear")[0]
            maps.append(one.argmax(0))
        return maps


transformers.AutoConfig.register(MODEL_TYPE, FsaConfig, exist_ok=True)
transformers.AutoModelForSemanticSegmentation.register(
    FsaConfig, FsaForSemanticSegmentation, exist_ok=True
)
transformers.AutoImageProcessor.register(
    FsaConfig,
    image_processor_classes={"pil": FsaImageProcessor, "torchvision": FsaImageProcessor},
    exist_ok=True,
)
# The names by which a pipeline judges whether it supports a network; without this one it logs an
# error, and runs all the same.
modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[MODEL_TYPE] = (
    FsaForSemanticSegmentation.__name__
)
