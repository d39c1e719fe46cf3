// All begins with the first finding, or in the middle of the scan.

new ResizeObserver(refresh).observe(stage);

byId("layer-masks").disabled = !data.findings.some((one) => one.slices.some((part) => part.mask));
if (data.findings.length) {
  state.selected = data.findings[0].number;
  state.slice = nearestSlice(data.findings[0].keySlice);
} else {
  state.slice = nearestSlice(Math.floor(data.depth / 2));
}
if (typeof DecompressionStream === "undefined") showError("it is too old");
else {
  draw();
  loadPictures().catch(showError);
}
stage.focus({ preventScroll: true });
