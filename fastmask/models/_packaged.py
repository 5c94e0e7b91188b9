"""Weights that come with the package."""

import urllib.parse
import urllib.request
from typing import Any

from fastmask.models._api import WeightsEnum
from fastmask.models.checkpoint import Checkpoint


class PackagedWeights(WeightsEnum):
    """Weights whose URL is that of a file in the package, in float16."""

    def get_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read them, whatever the arguments; float16 becomes float32."""
        file = urllib.request.url2pathname(urllib.parse.urlsplit(self.url).path)
        state = Checkpoint(file).get_state_dict()
        return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
