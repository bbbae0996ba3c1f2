"""Detections on seven images, and what they score."""

import torch

from fsanet.metrics.average_precision import AveragePrecision

CLASSES = ("cat", "dog", "ghost")
HEIGHT, WIDTH = 200, 240


def example():
    """Detections that are near, far, double, missing and of the wrong class, for seven images.

    There are crowds, no ghost anywhere, one image without labels and one without detections.
    """
    generator = torch.Generator().manual_seed(5)

    def random(*size):
        return torch.rand(*size, generator=generator)

    detections, targets = [], []
    for number in range(7):
        count = 0 if number == 2 else 4
        sides = torch.tensor([14.0, 30, 60, 130])[:count]
        corner = random(count, 2) * torch.tensor([WIDTH * 0.4, HEIGHT * 0.3])
        boxes = torch.cat([corner, corner + sides[:, None]], 1).round()
        boxes = boxes.clamp(max=torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT]))
        labels = (random(count) * 2).long() + 1
        masks = ellipses(boxes)
        crowd = torch.zeros(count, dtype=torch.int64)
        crowd[3:] = int(number in (1, 4))
        targets.append(
            {
                "boxes": boxes,
                "masks": masks,
                "labels": labels,
                "iscrowd": crowd,
                "area": masks.flatten(1).sum(1).float() * 0.9,  # not the mask's own
                "image_id": 10 * (7 - number),
            }
        )
        near = boxes.repeat(2, 1)
        near = (near + (random(len(near), 4) - 0.5) * 0.2 * sides.repeat(2)[:, None]).clamp(min=0)
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 2)
        stray = torch.tensor([[3.0, 100, 40, 150]])
        found = torch.cat([near, stray])[: 0 if number == 5 else None]
        kinds = torch.cat([labels.repeat(2), torch.ones(1, dtype=torch.int64)])[: len(found)]
        swap = random(len(found)) < 0.15
        detections.append(
            {
                "boxes": found,
                "masks": ellipses(found),
                "labels": torch.where(swap, 3 - kinds, kinds),
                "scores": random(len(found)),
            }
        )
    return detections, targets


def ellipses(boxes):
    """Masks bool (N, H, W) of the ellipses inscribed in boxes."""
    rows = torch.arange(HEIGHT)[:, None] + 0.5
    columns = torch.arange(WIDTH)[None] + 0.5
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        x = (columns - (x0 + x1) / 2) / ((x1 - x0) / 2)
        y = (rows - (y0 + y1) / 2) / ((y1 - y0) / 2)
        mask |= x**2 + y**2 <= 1
    return masks


def scored(detections, targets):
    metric = AveragePrecision(CLASSES)
    for found, target in zip(detections, targets, strict=True):
        metric.update([found], [target])
    return metric.compute()


def tied():
    """`example` with scores that many detections share, so that the order of the images counts."""
    detections, targets = example()
    return [{**found, "scores": found["scores"].round(decimals=1)} for found in detections], targets


def of_half(rank):
    """Scores of `tied` as one of two processes gets them, which has every other image."""
    detections, targets = tied()
    return scored(detections[rank::2], targets[rank::2]).as_dict()
