"""What a section of a page is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go


@dataclass(frozen=True)
class Section:
    name: str  # of its template, and of its place on the page
    title: str | None  # None: it has no heading
    says: Mapping[str, Any]  # what the template is given
    figures: Mapping[str, go.Figure] = field(default_factory=dict)
