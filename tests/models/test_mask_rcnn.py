"""Mask R-CNN: torchvision's detector, unchanged until its attention is trained."""

import copy

import pytest
import safetensors.torch
import torch
from support.contract import NetworkContract
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.mask_rcnn import MaskRCNN

from fsanet.errors import InputError
from fsanet.models.mask_rcnn import MaskRcnnFsa

FEW = {
    "rpn_pre_nms_top_n_test": 30,
    "rpn_post_nms_top_n_test": 10,
    "rpn_pre_nms_top_n_train": 30,
    "rpn_post_nms_top_n_train": 10,
    "box_detections_per_img": 4,
    "box_score_thresh": 0.0,
}
SIZE = {"min_size": 64, "max_size": 96}
TINY = {
    "num_classes": 2,
    "fpn_channels": 16,
    "box_channels": 16,
    "mask_channels": 8,
    "detector_options": FEW,
    **SIZE,
}


def tiny(backbone="test_resnet", **options):
    torch.manual_seed(0)
    return MaskRcnnFsa(backbone, **{"positions": ["p4"], "k": 2, **TINY, **options})


def shake(model):
    """Weights and statistics as after some training."""
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.rand(value.shape, generator=generator)
        if name.endswith(("bn3.weight", "cls_score.weight")):
            value.mul_(0.1)  # else features grow with depth, and scores saturate at 0 or 1
        value.add_(noise * 0.2 if name.endswith("running_var") else (noise - 0.5) * 0.02)
    return model


def detections(model, size=(48, 80)):
    images = [torch.rand(3, *size, generator=torch.Generator().manual_seed(2))]
    with torch.no_grad():
        return model.eval()(images)[0]


def same(first, second):
    assert len(first["boxes"]) > 0
    return all(torch.equal(first[name], second[name]) for name in first)


def reference(version):
    """torchvision's own detector, configured as for its published weights."""
    torch.manual_seed(0)
    if version == "v2":
        return shake(
            maskrcnn_resnet50_fpn_v2(
                weights=None, weights_backbone=None, num_classes=3, **SIZE, **FEW
            )
        )
    model = MaskRCNN(
        resnet_fpn_backbone(backbone_name="resnet50", weights=None), num_classes=3, **SIZE, **FEW
    )
    overwrite_eps(model, 0.0)  # as maskrcnn_resnet50_fpn does for its published weights
    return shake(model)


def losses(model, images):
    """Losses for two images, one with two objects and one without any."""
    masks = torch.zeros(2, *images.shape[-2:], dtype=torch.uint8)
    masks[0, 4:30, 8:60] = masks[1, 30:62, 40:90] = 1
    boxes = torch.tensor([[8.0, 4, 60, 30], [40, 30, 90, 62]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks}
    empty = {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.long), "masks": masks[:0]}
    return model(list(images), [target, empty])


class TestContract(NetworkContract):
    attributes = (*NetworkContract.attributes, "category_ids")

    @pytest.fixture(
        params=[
            {"positions": ["fpn"], "k": [[0, 2], [1, 3]], "category_ids": [17, 18]},
            {"backbone": "mobilenetv2_050", "positions": ["res4", "fpn"], "classes": ["a", "b"]},
            {"attention": "spatial", "similarity": "softmax"},
            {"attention": None},
        ],
        scope="class",
    )
    @classmethod
    def model(cls, request):
        return shake(tiny(**request.param))

    def loss(self, model, images):
        found = losses(model, images)
        assert set(found) == {
            *("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness"),
            "loss_rpn_box_reg",
        }
        return sum(found.values())

    def outputs(self, model, images):
        return [found | {"map": found["masks"]} for found in model(list(images))]

    def test_attention_parameters(self, model):
        expected = {name for name, _ in model.named_parameters() if "attention" in name}
        assert set(model.attention_parameters()) == expected


@pytest.mark.parametrize("version", ["v1", pytest.param("v2", marks=pytest.mark.slow)])
def test_torchvision_weights_give_torchvision_detections(version, tmp_path):
    theirs = reference(version)
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), file)
    ours = MaskRcnnFsa(
        "resnet50",
        num_classes=2,
        version=version,
        positions=("res4", "fpn"),
        weights=str(file),
        detector_options=FEW,
        **SIZE,
    )
    added = set(ours.state_dict()) - set(theirs.state_dict())
    assert not set(theirs.state_dict()) - set(ours.state_dict())
    assert all(".attention." in name for name in added)
    assert {n.split(".attention.")[0] for n in added} == {"backbone.body.layer3", "backbone"}
    expected = detections(theirs)
    assert same(expected, detections(ours))
    file.unlink()
    if version == "v1":  # its frozen norms have another eps than those of a detector from scratch
        ours.save_pretrained(tmp_path / "saved")
        assert same(expected, detections(MaskRcnnFsa.from_pretrained(tmp_path / "saved")))
    ours.backbone.body.layer3.attention.norm.weight.data.fill_(1.0)
    assert not same(expected, detections(ours))  # features do pass through the block


def test_res4_block_precedes_the_last_of_its_stage():
    with torch.device("meta"):
        model = MaskRcnnFsa("resnet50", num_classes=1, k=2, detector_options=FEW, **SIZE)
    order = []
    for name, part in model.backbone.body.layer3.named_children():
        part.register_forward_hook(lambda *_, name=name: order.append(name))
    model.eval().backbone(torch.empty(1, 3, 64, 64, device="meta"))
    assert order == ["0", "1", "2", "3", "4", "attention", "5"]
    assert model.backbone.body.layer3.attention.channels == 1024


def test_resnet101_has_the_names_of_torchvision():
    with torch.device("meta"):
        body = resnet_fpn_backbone(backbone_name="resnet101", weights=None)
        theirs = MaskRCNN(body, num_classes=3)
        ours = MaskRcnnFsa("resnet101", num_classes=2, attention=None)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_pyramid_levels_pass_through_their_blocks():
    model = shake(tiny(positions=["p3", "p5"])).eval()
    images = torch.rand(1, 3, 64, 96)
    shared = []
    model.backbone.attention["p3"].register_forward_hook(
        lambda m, x, y: shared.append(x[0].data_ptr() == y.data_ptr())
    )
    model.backbone(images)
    with torch.no_grad():
        plain = model.backbone.fpn(model.backbone.body(images))
        levels = model.backbone(images)
        for key, level in plain.items():
            position = {"1": "p3", "3": "p5"}.get(key)
            block = model.backbone.attention[position] if position else torch.nn.Identity()
            assert torch.equal(levels[key], block(level)), key
            assert torch.equal(levels[key], level) == (position is None), key
    assert shared == [False, True, False]  # in training, in inference, and on a map of our own


def test_timm_stage_with_the_block_before_its_last():
    model = tiny("mobilenetv2_050", positions=["res4"])
    stage = model.backbone.body.encoder.blocks[4]
    assert list(dict(stage.named_children())) == ["0", "1", "attention", "2"]
    plain = tiny("mobilenetv2_050", attention=None)
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if ".attention." not in n})
    assert same(detections(plain), detections(model))


def test_gradient_reaches_a_block_that_starts_as_the_identity():
    model = tiny(positions=["p4"]).train()
    sum(losses(model, torch.rand(2, 3, 64, 96)).values()).backward()
    assert model.backbone.attention["p4"].norm.weight.grad.abs().max() > 0


def test_frozen_stages_do_not_learn_but_their_attention_does():
    with torch.device("meta"):
        model = MaskRcnnFsa("resnet50", num_classes=1, trainable_stages=1, k=2)
    learning = {n for n, p in model.backbone.body.named_parameters() if p.requires_grad}
    assert {n.split(".")[0] for n in learning} == {"layer4", "layer3"}
    assert all(".attention." in n for n in learning if n.startswith("layer3"))


# --- invalid input ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"positions": ["res5"]}, r"positions: 'res5' is none of res4, fpn, p2"),
        ({"positions": ["res4"]}, r'"res4" needs a backbone.* use "p4"'),
        ({"detector_options": {"box_nms_tresh": 0.3}}, r"did you mean 'box_nms_thresh'"),
        ({"attention": "global"}, r"attention='global'"),
        ({"version": "v3"}, r"version='v3'"),
        ({"num_classes": 0}, r"at least 1"),
        ({"anchor_sizes": [8, 16]}, r"five sides"),
        ({"std": [1.0, 0.0, 1.0]}, r"std above 0"),
        ({"classes": ["one"]}, r"1 names and 2 category ids for 2 classes"),
        ({"weights": "nowhere.pth"}, r"nowhere.pth: no such file"),
        ({"weights": "MaskRCNN_ResNet50_FPN_Weights.COCO_V9"}, r"give one of .*COCO_V1"),
        ({"backbone": "resnet1o1"}, r"not a timm model"),
        ({"backbone": "vit_tiny_patch16_224"}, r"vit_tiny_patch16_224"),
    ],
)
def test_invalid_options(options, match):
    with pytest.raises(InputError, match=match):
        tiny(**options)


def test_mismatched_weights(tmp_path):
    state = tiny(attention=None).state_dict()
    file = tmp_path / "weights.pth"
    changes = {
        "1 missing": lambda s: s.pop("rpn.head.cls_logits.bias"),
        "1 not of this network, such as surplus": lambda s: s.update(surplus=torch.zeros(1)),
        "1 of another shape": lambda s: s.update({"rpn.head.cls_logits.bias": torch.zeros(7)}),
    }
    for message, change in changes.items():
        wrong = copy.copy(state)
        change(wrong)
        torch.save(wrong, file)
        with pytest.raises(InputError, match=message):
            tiny(weights=str(file))


def test_weights_for_other_classes_need_replace_predictors(tmp_path):
    source = shake(tiny(num_classes=5))
    file = tmp_path / "weights.pth"
    torch.save(source.state_dict(), file)
    with pytest.raises(InputError, match=r"of another shape.*replace_predictors"):
        tiny(weights=str(file))
    model = tiny(weights=str(file), replace_predictors=True)
    for name, value in model.state_dict().items():
        is_last = "box_predictor" in name or "mask_fcn_logits" in name
        assert torch.equal(value, source.state_dict()[name]) != is_last, name
