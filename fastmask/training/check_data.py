"""Whether data fit a model, before anything is trained."""

from collections.abc import Sequence

from fastmask.data.records import Dataset
from fastmask.evaluation.identity import map_labels
from fastmask.evaluation.oks import check_number
from fastmask.evaluation.run import number_records
from fastmask.models.detection.generalized_rcnn import GeneralizedRCNN


def check_data(model: GeneralizedRCNN, names: Sequence[str], train: Dataset, val: Dataset | None) -> None:
    """Raise a ValueError unless a model can be trained on ``train`` and evaluated on ``val``, if that is given.

    Its keypoints must be as many as those of the data, and one of its classes, called ``names`` by label, of ``val``.
    """
    check_number(model.roi_heads.num_keypoints(), train.skeletons)
    if val is not None:
        check_number(model.roi_heads.num_keypoints(), val.skeletons)
        map_labels(names, val.categories)
        number_records(val)
