"""From the part of a slice that an image shows back to the slice on disk.

With INPUT.CT.CUT_BORDERS samples have ``crop``, (x0, y0, x1, y1) in whole pixels of the slice on
disk, ends exclusive: the part that ``image`` shows. Their ``height`` and ``width`` are the slice's.
"""

from detectron2.structures import Boxes, Instances


def shown_size(input_dict: dict, image_size: tuple[int, int]) -> tuple[int, int]:
    """The size of what an image shows, before it was resized.

    Args:
        input_dict: of Detectron2's models, with ``crop``, with ``height`` and ``width``, or none.
        image_size: height and width of the image, where the dict does not say more.

    Returns:
        Height and width in pixels of the slice on disk: the crop's, where there is one.
    """
    if "crop" in input_dict:
        x0, y0, x1, y1 = input_dict["crop"]
        return y1 - y0, x1 - x0
    return input_dict.get("height", image_size[0]), input_dict.get("width", image_size[1])


def put_back(instances: Instances, input_dict: dict) -> Instances:
    """Move what was found on a crop to its place on the slice.

    Args:
        instances: of :func:`shown_size`, in pixels of the slice with the crop's corner as origin;
            with ``pred_boxes`` and, where there are masks, ``pred_masks`` (n, height, width).
        input_dict: with ``crop``, ``height`` and ``width`` of the slice; without ``crop`` the
            instances stay as they are.

    Returns:
        Instances of the slice's size: boxes moved, masks padded, other fields as they were.
    """
    if "crop" not in input_dict:
        return instances
    x0, y0, x1, y1 = input_dict["crop"]
    placed = Instances((input_dict["height"], input_dict["width"]), **instances.get_fields())
    boxes = instances.pred_boxes.tensor
    placed.pred_boxes = Boxes(boxes + boxes.new_tensor([x0, y0, x0, y0]))
    if instances.has("pred_masks"):
        masks = instances.pred_masks.new_zeros(len(instances), *placed.image_size)
        masks[:, y0:y1, x0:x1] = instances.pred_masks
        placed.pred_masks = masks
    return placed
