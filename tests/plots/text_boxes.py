"""Which texts of a figure a browser cuts off or writes over each other: their boxes, measured in Chromium."""

import json
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from tests.app.browser import Browser

_MEASURE = """
async function measure(spec) {
  const div = document.getElementById("figure");
  div.innerHTML = "";
  const width = spec.layout.width || 1000, height = spec.layout.height || 450;
  div.style.width = width + "px"; div.style.height = height + "px";
  await Plotly.newPlot(div, spec.data, {...spec.layout, width, height}, {staticPlot: true, typesetMath: false});
  const frame = div.getBoundingClientRect(), found = [], boxes = [];
  for (const text of div.querySelectorAll(".main-svg text")) {
    if (!text.textContent.trim() || text.closest("[style*='display: none']")) continue;
    if (getComputedStyle(text).opacity === "0" || getComputedStyle(text).visibility === "hidden") continue;
    const box = text.getBoundingClientRect();
    if (!box.width || !box.height) continue;
    const beyond = [frame.left - box.left, box.right - frame.right, frame.top - box.top, box.bottom - frame.bottom];
    const out = Math.max(...beyond);
    if (out > 1) found.push(["cut", text.textContent.slice(0, 60), Math.round(out)]);
    const size = parseFloat(getComputedStyle(text).fontSize);
    if (size < 11.5) found.push(["small", text.textContent.slice(0, 60), size]);
    if (text.closest(".gtitle, .g-gtitle, .annotation, .legend, .g-xtitle, .g-ytitle")) boxes.push([text, box]);
  }
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const [a, one] = boxes[i], [b, two] = boxes[j];
    const across = Math.min(one.right, two.right) - Math.max(one.left, two.left);
    const down = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
    const both = a.textContent.slice(0, 40) + " / " + b.textContent.slice(0, 40);
    if (across > 2 && down > 3) found.push(["over", both, Math.round(down)]);
  }
  Plotly.purge(div);
  return JSON.stringify(found);
}
"""


class TextBoxes:
    """A page with plotly.js that draws one figure after another.

    Args:
        browser: An open browser.
        folder: For the page.
    """

    def __init__(self, browser: Browser, folder: Path) -> None:
        self.browser = browser
        (folder / "plotly.js").write_text(get_plotlyjs(), "utf-8")
        (folder / "page.html").write_text(
            "<!doctype html><meta charset='utf-8'><script src='plotly.js'></script><body style='margin:40px'>"
            f"<div id='figure'></div><script>{_MEASURE}</script>",
            "utf-8",
        )
        browser.open(folder / "page.html")

    def faults(self, fig: go.Figure) -> list[list[object]]:
        """Texts beyond the figure ("cut"), below 12 px ("small"), and titles and words over each other ("over")."""
        found: list[list[object]] = json.loads(self.browser.evaluate(f"measure({fig.to_json()})"))
        return found
