"""The report for people who use keys, a screen reader, a phone, or paper."""

import pytest

pytest.importorskip("selenium", reason="needs selenium")

from open_report import Viewer
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

# For each text that can be seen: the contrast (WCAG 2.2, 1.4.3) with what is behind it.
CONTRASTS = """
const parse = (color) => {
  const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
  return [r, g, b, a];
};
const over = ([r, g, b, a], below) => [r, g, b].map((c, i) => a * c + (1 - a) * below[i]);
const luminance = (color) => {
  const [r, g, b] = color.map((c) => c / 255).map(
    (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const backgrounds = (element) => {
  const layers = [];
  for (let one = element; one; one = one.parentElement) {
    // What is below a corner's text is the slice: white at worst, or black.
    if (one.id === "stage") return [[255, 255, 255], [0, 0, 0]].map(
      (below) => layers.reduceRight((color, layer) => over(layer, color), below));
    layers.push(parse(getComputedStyle(one).backgroundColor));
    if (layers.at(-1)[3] === 1) break;
  }
  return [layers.reduceRight((color, layer) => over(layer, color), [255, 255, 255])];
};
const result = [];
const check = (element, text) => {
  const style = getComputedStyle(element);
  const box = element.getBoundingClientRect();
  if (!text.trim() || box.width < 2 || !element.checkVisibility({visibilityProperty: true})) return;
  for (const below of backgrounds(element)) {
    const [one, other] = [luminance(over(parse(style.color), below)), luminance(below)];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    result.push([text.trim().slice(0, 40), ratio]);
  }
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const parent = walker.currentNode.parentElement;
  if (!["SCRIPT", "STYLE", "NOSCRIPT"].includes(parent.tagName) && !parent.closest(".skip")) {
    check(parent, walker.currentNode.data);
  }
}
for (const input of document.querySelectorAll("input[type=number]")) check(input, input.value);
return result;
"""


@pytest.mark.parametrize("media", ["screen", "print"])
def test_every_text_has_enough_contrast(viewer, media):
    viewer.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media})
    try:
        contrasts = viewer.script(CONTRASTS)
        if media == "print":
            paper = viewer.script(
                "return getComputedStyle(document.body.parentElement).backgroundColor"
            )
            assert paper == "rgb(255, 255, 255)"
            notice = viewer.driver.find_element("css selector", ".every-page")
            assert notice.is_displayed() and notice.value_of_css_property("position") == "fixed"
            assert notice.text.startswith("Not a medical device")
            assert not viewer.by_id("score").is_displayed()
    finally:
        viewer.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert len(contrasts) > 40
    assert [one for one in contrasts if one[1] < 4.5] == []


def test_everything_that_takes_focus_has_a_name(viewer):
    nodes = viewer.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found = []
    for node in nodes:
        properties = {one["name"]: one["value"].get("value") for one in node.get("properties", [])}
        if not node["ignored"] and properties.get("focusable"):
            found.append((node["role"]["value"], node.get("name", {}).get("value", "")))
    roles = dict.fromkeys(role for role, _ in found)
    assert {"slider", "button", "checkbox", "radio", "spinbutton", "link"} <= set(roles)
    assert [one for one in found if one[0] != "RootWebArea" and not one[1].strip()] == []
    assert ("slider", "Slice") in found and ("button", "Finding 2") in found
    strip = viewer.by_id("strip")
    assert strip.get_attribute("aria-valuetext") == "Slice 9 of 12, findings 1, 3"
    assert viewer.stage.get_attribute("aria-label") == "Slice 9 of 12, findings 1, 3"


def test_focus_goes_through_the_page_in_order(viewer):
    assert viewer.script("return document.activeElement.id") == "stage"
    viewer.script(
        """
        document.querySelector(".skip").focus();
        window.order = [];
        document.addEventListener("focusin", ({ target }) =>
          order.push(target.id || target.dataset.sort || target.getAttribute("aria-label")));
        """
    )
    ActionChains(viewer.driver, duration=0).send_keys(Keys.TAB * 32).perform()
    viewer.wait(lambda: "Finding 3" in viewer.script("return order"))
    order = viewer.script("return order")
    order = order[: order.index("Finding 3") + 1]
    expected = ["preset-0", "level", "stage", "strip", "layer-boxes", "zoom-fit", "previous"]
    expected += ["score", "score", "size", "Finding 1", "Finding 3"]
    assert [name for name in order if name in expected] == expected


def test_letters_are_for_the_viewer_alone(viewer):
    viewer.by_id("next").send_keys("b", Keys.ARROW_DOWN)
    viewer.by_id("level").send_keys(Keys.ARROW_UP)
    assert viewer.by_id("layer-boxes").is_selected() and viewer.slice == 8
    viewer.press("n")
    viewer.wait_for_slice(3)
    assert viewer.by_id("spoken").get_attribute("textContent") == "Finding 2, score 0.60, slice 4"
    viewer.press("p")
    viewer.wait_for_slice(8)
    viewer.press(Keys.ARROW_DOWN)
    spoken = "Slice 10 of 12, findings 1, 3"
    viewer.wait(lambda: viewer.by_id("spoken").get_attribute("textContent") == spoken)


def test_small_touch_screen(chromium, report_file):
    commands = chromium.execute_cdp_cmd
    viewer = Viewer(chromium, report_file)
    size = {"width": 400, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    try:
        commands("Emulation.setDeviceMetricsOverride", size)
        commands("Emulation.setTouchEmulationEnabled", {"enabled": True})
        chromium.refresh()
        viewer.stage = viewer.by_id("stage")
        viewer.wait(lambda: viewer.data.get("slice") == "8")
        assert viewer.script("return document.documentElement.scrollWidth") <= 400
        for name in ("stage", "preset-3", "score", "rows"):
            place = viewer.place(name)
            assert place["x"] >= 0 and place["x"] + place["width"] <= 400.5
        # A finger that goes up by half the stage goes through slices, and two zoom.
        stage = viewer.place("stage")
        x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2

        def touch(kind: str, *points: tuple) -> None:
            touches = [{"x": left, "y": top, "id": i} for i, (left, top) in enumerate(points)]
            commands("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

        touch("touchStart", (x, y))
        for share in (0.1, 0.2, 0.3):
            touch("touchMove", (x, y - share * stage["height"]))
        touch("touchEnd")
        viewer.wait(lambda: viewer.slice < 6)
        touch("touchStart", (x - 30, y), (x + 30, y))
        touch("touchMove", (x - 60, y), (x + 60, y))
        touch("touchEnd")
        viewer.wait(lambda: viewer.place("image")["height"] > 1.8 * stage["height"])
    finally:
        commands("Emulation.setTouchEmulationEnabled", {"enabled": False})
        commands("Emulation.clearDeviceMetricsOverride", {})
    assert chromium.get_log("browser") == []
