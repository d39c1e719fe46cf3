"""A report that is open in a browser, as tests use it."""

import base64
from collections.abc import Callable

import cv2
import numpy as np
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


class Viewer:
    """A report that is open in a browser."""

    def __init__(self, driver, file):
        self.driver = driver
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.get(file.as_uri())
        self.stage = self.by_id("stage")
        self.wait(lambda: self.data.get("slice") is not None)

    def by_id(self, name: str):
        return self.driver.find_element(By.ID, name)

    def script(self, text: str, *arguments):
        return self.driver.execute_script(text, *arguments)

    def wait(self, condition: Callable[[], bool]) -> None:
        WebDriverWait(self.driver, 30, poll_frequency=0.02).until(lambda _: condition())

    @property
    def data(self) -> dict[str, str]:
        """What the stage says of the slice that is drawn on it."""
        return self.script("return {...arguments[0].dataset}", self.stage)

    @property
    def slice(self) -> int:
        return int(self.data["slice"])

    @property
    def window(self) -> tuple[float, float]:
        data = self.data
        return float(data["low"]), float(data["high"])

    def wait_for_slice(self, z: int) -> None:
        self.wait(lambda: self.slice == z)

    def press(self, *keys: str) -> None:
        self.stage.send_keys(*keys)

    def canvas(self, name: str) -> np.ndarray:
        """H x W x 4 RGBA pixels of a canvas."""
        picture = self.script(
            "return document.querySelector(arguments[0]).toDataURL('image/png')", name
        )
        data = np.frombuffer(base64.b64decode(picture.split(",")[1]), np.uint8)
        return cv2.imdecode(data, cv2.IMREAD_UNCHANGED)[..., [2, 1, 0, 3]]

    def place(self, name: str) -> dict:
        return self.script("return arguments[0].getBoundingClientRect()", self.by_id(name))

    def shown_rows(self) -> list[int]:
        return self.script(
            "return [...document.querySelectorAll('#rows tr')]"
            ".filter((row) => row.checkVisibility()).map((row) => Number(row.dataset.finding))"
        )
