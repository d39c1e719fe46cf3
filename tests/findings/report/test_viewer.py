"""The report in a real browser: what its viewer shows when it is used."""

from lesion_d2.findings import decode_mask

import cv2
import numpy as np
import pytest

pytest.importorskip("selenium", reason="needs selenium")

from open_report import Viewer
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

SELECTED = (79, 216, 255)
PLAIN = (255, 213, 74)


def gray(hu: np.ndarray, low: float, high: float) -> np.ndarray:
    share = (hu.clip(-1024, 3071).astype(float) - low) / (high - low)
    return np.floor(255 * share.clip(0, 1) + 0.5).astype(np.uint8)


def has_color(pixels: np.ndarray, color: tuple) -> np.ndarray:
    close = np.abs(pixels[..., :3].astype(int) - color).max(-1) < 12
    return close & (pixels[..., 3] > 200)


def expected_on_overlay(viewer: Viewer, points) -> np.ndarray:
    """Where places (N, 2) in voxels should be on the overlay, from where the image is."""
    image, overlay = viewer.place("image"), viewer.place("overlay")
    corner = [image["x"] - overlay["x"], image["y"] - overlay["y"]]
    return corner + (np.array(points) + 0.5) / (64, 48) * (image["width"], image["height"])


def test_opens_on_the_first_finding(viewer, small_scan):
    assert viewer.slice == 8
    assert viewer.window == (-160, 240)
    # The name has a script in it, which is text.
    assert viewer.driver.title.startswith("Findings: <script>")
    # 64 pixels of 0.8 mm by 48 of 1.2 mm.
    image, stage = viewer.place("image"), viewer.place("stage")
    assert image["width"] / image["height"] == pytest.approx(51.2 / 57.6, rel=1e-3)
    assert image["height"] == pytest.approx(stage["height"], abs=1)
    assert viewer.script("return performance.getEntriesByType('resource').length") == 0


def test_presets_are_windows_of_hu(viewer, small_scan):
    windows = [(-160, 240), (-1350, 150), (-500, 1300), (-45, 105)]
    for i, (low, high) in enumerate(windows):
        viewer.by_id(f"preset-{i}").click()
        viewer.wait(lambda window=(low, high): viewer.window == window)
        pixels = viewer.canvas("#image")
        assert (pixels[..., :3] == gray(small_scan.volume[8], low, high)[..., None]).all()
        assert (pixels[..., 3] == 255).all()
        assert viewer.by_id(f"preset-{i}").get_attribute("aria-pressed") == "true"
    viewer.press("2")
    viewer.wait(lambda: viewer.window == windows[1])


def test_wheel_and_keys_change_the_slice(viewer, small_scan):
    wheel = ActionChains(viewer.driver, duration=0)
    origin = ScrollOrigin.from_element(viewer.stage)
    wheel.scroll_from_origin(origin, 0, 120).perform()
    viewer.wait_for_slice(9)
    assert (viewer.canvas("#image")[..., 0] == gray(small_scan.volume[9], -160, 240)).all()

    wheel.scroll_from_origin(origin, 0, -120).perform()
    viewer.wait_for_slice(8)
    steps = [
        (Keys.ARROW_DOWN, 9),
        (Keys.ARROW_RIGHT, 10),
        (Keys.ARROW_UP, 9),
        (Keys.ARROW_LEFT, 8),
        (Keys.PAGE_UP, 0),
        (Keys.PAGE_DOWN, 10),
        (Keys.END, 11),
        (Keys.ARROW_DOWN, 11),
        (Keys.HOME, 0),
    ]
    for key, z in steps:
        viewer.press(key)
        viewer.wait_for_slice(z)
    assert viewer.by_id("slice-shown").text == "1 / 12"
    assert viewer.by_id("strip").get_attribute("aria-valuenow") == "1"


def test_drag_changes_the_window(viewer, small_scan):
    low, high = viewer.window
    drag = ActionChains(viewer.driver, duration=20)
    drag.move_to_element(viewer.stage).click_and_hold().move_by_offset(90, 30).release().perform()
    viewer.wait(lambda: viewer.window[1] - viewer.window[0] > high - low + 50)
    assert sum(viewer.window) / 2 < (low + high) / 2 - 10
    expected = gray(small_scan.volume[8], *viewer.window)
    assert (viewer.canvas("#image")[..., 0] == expected).all()
    assert viewer.slice == 8


def test_numbers_set_the_window(viewer):
    for name, value in (("level", "300"), ("width", "1000")):
        field = viewer.by_id(name)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(value, Keys.ENTER)
    viewer.wait(lambda: viewer.window == (-200, 800))


def test_finding_is_drawn_where_the_json_says(viewer):
    viewer.driver.find_element(By.CSS_SELECTOR, '[data-finding="2"] button').click()
    viewer.wait_for_slice(3)
    row = viewer.driver.find_element(By.CSS_SELECTOR, '[data-finding="2"]')
    assert row.get_attribute("aria-current") == "true"

    for layer in ("masks", "diameters"):
        viewer.by_id(f"layer-{layer}").click()
    x1, y1, x2, y2 = viewer.script(
        "return JSON.parse(document.getElementById('data').textContent)"
        ".findings[1].slices.find((one) => one.z === 3).box"
    )
    (left, top), (right, bottom) = expected_on_overlay(viewer, [[x1, y1], [x2, y2]])
    inside = np.s_[round(top) + 4 : round(bottom) - 4, round(left) + 4 : round(right) - 4]
    viewer.wait(lambda: not viewer.canvas("#overlay")[inside][..., 3].any())
    drawn = has_color(viewer.canvas("#overlay"), SELECTED)
    across = np.flatnonzero(drawn[round(top + (bottom - top) / 3)]) + 0.5
    down = np.flatnonzero(drawn[:, round(left + (right - left) / 1.5)]) + 0.5

    for found, edges in ((across, (left, right)), (down, (top, bottom))):
        middle = sum(edges) / 2
        assert found[found < middle].mean() == pytest.approx(edges[0], abs=0.8)
        assert found[found > middle].mean() == pytest.approx(edges[1], abs=0.8)

    viewer.by_id("layer-boxes").click()
    viewer.wait(lambda: not has_color(viewer.canvas("#overlay"), SELECTED).any())


def test_mask_and_diameters_are_drawn(viewer, small_findings):
    viewer.press("b", "d")
    viewer.wait(lambda: not viewer.by_id("layer-diameters").is_selected())
    mask = decode_mask(small_findings.findings[0].slices[1].mask)
    mask_or_edge = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3)))
    overlay = viewer.canvas("#overlay")
    for pixels, is_filled in ((mask, True), (mask_or_edge == 0, False)):
        y, x = np.nonzero(pixels[:, :35])  # the other finding lies beyond
        columns, lines = expected_on_overlay(viewer, np.column_stack([x, y])).astype(int).T
        filled = overlay[lines, columns, 3] > 20
        assert filled.mean() == is_filled

    viewer.press("m", "d")
    viewer.wait(lambda: viewer.by_id("layer-diameters").is_selected())
    viewer.wait(lambda: not viewer.by_id("layer-masks").is_selected())
    overlay = viewer.canvas("#overlay").astype(int)
    finding = small_findings.findings[0]
    for diameter in (finding.long_diameter, finding.short_diameter):
        start, end = map(np.array, diameter.points)
        places = start + np.array([[0.1], [0.35], [0.9]]) * (end - start)
        for column, row in expected_on_overlay(viewer, places).astype(int):
            near = overlay[row - 1 : row + 2, column - 1 : column + 2]
            # A thin line over its dark halo: the color, darkened where it covers half a pixel.
            assert ((near[..., 2] > 120) & (near[..., 2] > near[..., 0] + 60)).any()


def test_slider_hides_findings(viewer):
    assert viewer.shown_rows() == [1, 2, 3]
    slider = viewer.by_id("score")
    assert slider.get_attribute("min") == "0.30"
    slider.send_keys(*[Keys.ARROW_RIGHT] * 5)  # 0.35: above the third's 0.345
    viewer.wait(lambda: viewer.shown_rows() == [1, 2])
    assert viewer.by_id("count").text == "2 of 3 shown"
    assert viewer.by_id("score-shown").text == "0.35"
    viewer.press(Keys.ARROW_DOWN)
    viewer.wait_for_slice(9)  # where findings 1 and 3 are
    viewer.wait(lambda: not has_color(viewer.canvas("#overlay"), PLAIN).any())
    assert has_color(viewer.canvas("#overlay"), SELECTED).any()
    slider.send_keys(Keys.END)
    viewer.wait(lambda: viewer.shown_rows() == [])
    assert viewer.by_id("none").is_displayed()
    slider.send_keys(Keys.HOME)
    viewer.wait(lambda: viewer.shown_rows() == [1, 2, 3])
    viewer.wait(lambda: has_color(viewer.canvas("#overlay"), PLAIN).any())


def test_a_click_on_the_strip_jumps_to_its_slice(viewer):
    strip = viewer.place("strip")

    def click(x: float, z: float) -> None:
        point = (strip["x"] + x, strip["y"] + (z + 0.5) / 12 * strip["height"])
        actions = ActionChains(viewer.driver, duration=0)
        actions.w3c_actions.pointer_action.move_to_location(*map(round, point))
        actions.w3c_actions.pointer_action.click()
        actions.perform()

    click(3, 0)
    viewer.wait_for_slice(0)
    click(13, 2)  # the mark of finding 2, which reaches from slice 2 to 4
    viewer.wait_for_slice(3)
    marks = viewer.canvas("#strip-picture")
    scale = marks.shape[0] / 12
    rows = np.flatnonzero(has_color(marks[:, 9:20], SELECTED).any(1)) / scale
    assert rows.min() == pytest.approx(2, abs=0.1) and rows.max() == pytest.approx(5, abs=0.1)


def test_pictures_follow_the_window(viewer):
    name = '[data-finding="1"] canvas'
    viewer.wait(lambda: viewer.canvas(name)[..., 3].all())
    before = viewer.canvas(name)
    assert has_color(before, PLAIN).any()
    viewer.by_id("preset-1").click()
    viewer.wait(lambda: (viewer.canvas(name) != before).any())


def test_a_click_on_a_header_sorts_the_table(viewer):
    place = viewer.driver.find_element(By.CSS_SELECTOR, '[data-sort="place"]')
    for order in ([2, 1, 3], [3, 1, 2]):
        place.click()
        viewer.wait(lambda order=order: viewer.shown_rows() == order)
    header = place.find_element(By.XPATH, "..")
    assert header.get_attribute("aria-sort") == "descending"


def middle_of(viewer: Viewer) -> float:
    return viewer.place("stage")["height"] / 2


def test_zoom_keeps_boxes_on_the_image(viewer):
    viewer.press("m", "d", "+", "+", "+")
    viewer.wait(lambda: viewer.place("image")["height"] > 1.9 * viewer.place("stage")["height"])
    viewer.wait(lambda: not viewer.by_id("layer-diameters").is_selected())
    right, middle = expected_on_overlay(viewer, [[29, 20]])[0]
    found = np.flatnonzero(has_color(viewer.canvas("#overlay"), SELECTED)[round(middle)]) + 0.5
    assert found.max() == pytest.approx(right, abs=1.5)
    # Keys alone reach every part of it.
    top = viewer.place("image")["y"]
    viewer.press(Keys.SHIFT + Keys.ARROW_DOWN + Keys.ARROW_DOWN)
    viewer.wait(lambda: viewer.place("image")["y"] == pytest.approx(top - 80, abs=1))
    assert viewer.slice == 8
    # Another finding's box comes to the middle, as far as the image reaches.
    viewer.press("n")
    viewer.wait_for_slice(3)
    viewer.wait(lambda: abs(expected_on_overlay(viewer, [[40, 30]])[0, 1] - middle_of(viewer)) < 1)
    viewer.press("0")
    viewer.wait(lambda: viewer.place("image")["height"] < 1.1 * viewer.place("stage")["height"])


def test_policy_stops_what_is_put_in(chromium, report_file):
    viewer = Viewer(chromium, report_file)
    stopped = viewer.driver.execute_async_script(
        """
        const done = arguments[0];
        const stopped = new Set();
        document.addEventListener("securitypolicyviolation", (event) => {
          stopped.add(event.effectiveDirective);
          if (stopped.size === 4) done([...stopped]);
        });
        fetch("http://127.0.0.1:9/").catch(() => 0);
        new Image().src = "http://127.0.0.1:9/";
        const style = document.createElement("style");
        style.textContent = "body { color: red }";
        const script = document.createElement("script");
        script.textContent = "document.title = 'run'";
        document.body.append(style, script);
        """
    )

    assert sorted(stopped) == ["connect-src", "img-src", "script-src-elem", "style-src-elem"]
    assert chromium.title != "run"
    chromium.get_log("browser")  # the browser tells that it stopped them
