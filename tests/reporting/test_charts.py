"""Scales, bars and points."""

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeslim.reporting.charts import Bar, Point, Scale, bars, scatter


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=8))
def test_a_scale_holds_every_value_in_order_with_round_ticks_between(values: list[float]) -> None:
    scale = Scale.over(values, 0.0, 100.0)
    places = [scale.place(value) for value in sorted(values)]
    assert places == sorted(places) and all(0 <= place <= 100 for place in places)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 12 and all(0 <= scale.place(tick) <= 100 + 1e-6 for tick in ticks)


@pytest.mark.parametrize(("values", "logarithmic"), [((1.0, 9.0), False), ((1.0, 11.0), True), ((0.0, 50.0), False)])
def test_values_over_more_than_a_decade_get_a_logarithmic_scale(values: tuple[float, ...], logarithmic: bool) -> None:
    assert Scale.over(values, 0, 1).logarithmic is logarithmic


def test_bars_are_as_long_as_their_share_of_the_largest_and_absent_without_a_value() -> None:
    rows = [Bar(label=f"<{value}>", value=value, text="", series=0) for value in (5.0, 20.0, None)]
    drawn = bars({"": rows[:1], "other": rows[1:]})
    assert re.findall(r"width:([\d.]+)%", drawn) == ["25.00", "100.00"]
    assert "&lt;5.0&gt;" in drawn and drawn.count("<li>") == 3


def test_points_that_lie_on_one_another_do_not_get_labels_on_one_another() -> None:
    points = [Point(x=1.0, y=1.0, label=f"bundle {number}", series=number) for number in range(12)]
    drawing = ET.fromstring(scatter(points, "x", "y"))
    space = "{http://www.w3.org/2000/svg}"
    labels = [text for text in drawing.iter(f"{space}text") if (text.text or "").startswith("bundle")]
    places = {(text.get("x"), text.get("y")) for text in labels}
    assert 1 <= len(labels) <= 4 and len(places) == len(labels)
    assert len(list(drawing.iter(f"{space}title"))) == 12
