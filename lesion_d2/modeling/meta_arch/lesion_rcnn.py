from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances


@META_ARCH_REGISTRY.register()
class LesionRCNN(GeneralizedRCNN):
    """Faster and Mask R-CNN whose boxes come back to the slice in the data set's coordinates.

    Whole numbers are pixel centers there. With ``ULDorROIHeads`` it is ULDor's detector (Tang et
    al., section 2).
    """

    def inference(
        self,
        batched_inputs: list[dict],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list:
        """As in Detectron2."""
        results = super().inference(batched_inputs, detected_instances, do_postprocess=False)
        if not do_postprocess:
            return results
        return [
            {"instances": _postprocess(*each)} for each in zip(results, batched_inputs, strict=True)
        ]


def _postprocess(result: Instances, input_dict: dict) -> Instances:
    """Bring boxes and masks to output size.

    Detectron2 scales about pixel corners. That is right for masks, which were learned and are
    pasted by the same boxes; a box about pixel centers lies half a pixel of either size aside.
    """
    image_height, image_width = result.image_size
    height = input_dict.get("height", image_height)
    width = input_dict.get("width", image_width)
    result = detector_postprocess(result, height, width)
    shift_x, shift_y = (width / image_width - 1) / 2, (height / image_height - 1) / 2
    result.pred_boxes.tensor += result.pred_boxes.tensor.new_tensor(
        [shift_x, shift_y, shift_x, shift_y]
    )
    result.pred_boxes.clip(result.image_size)
    return result
