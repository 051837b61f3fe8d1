// Charts with uPlot, in the colours of the theme, as wide as their place.

import { rate } from "./format.js";

const HEIGHT = 200;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const faded = (hex) => `${hex}33`;

export class Chart {
  // series: [{label, colour: CSS variable, fill, kind: "line" | "bars", value}]; x: {time, values}; y: {values, range}.
  constructor(place, { series, x = {}, y = {}, stacked = false, height = HEIGHT }) {
    Object.assign(this, { place, series, x, y, stacked, height, plot: null, data: null });
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(place);
    new MutationObserver(() => this.draw()).observe(document.documentElement, { attributeFilter: ["data-bs-theme"] });
  }

  set(data, label) {
    this.data = data;
    if (this.place.getAttribute("aria-label") !== label) this.place.setAttribute("aria-label", label);
    if (this.plot) this.plot.setData(data);
    else this.draw();
  }

  size() {
    return { width: Math.max(200, this.place.clientWidth), height: this.height };
  }

  draw() {
    if (!this.data) return;
    this.plot?.destroy();
    const text = colour("--flower-text-muted");
    const axis = { stroke: text, grid: { stroke: colour("--cm-grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const bars = window.uPlot.paths.bars({ size: [0.8, 40] });
    const options = {
      ...this.size(),
      cursor: { drag: { x: false, y: false }, points: { size: 6 } },
      legend: { live: true },
      scales: { x: { time: Boolean(this.x.time), range: this.x.range }, y: { range: this.y.range ?? fromZero } },
      axes: [
        { ...axis, grid: { show: false }, values: this.x.values, size: 28, space: 60 },
        { ...axis, values: this.y.values ?? ((_, splits) => splits.map(rate)), size: 56, space: 36 },
      ],
      series: [
        { label: this.x.label ?? "", value: this.x.value },
        ...this.series.map((one) => ({
          label: one.label,
          stroke: colour(one.colour),
          fill: one.fill ? (one.solid ? colour(one.colour) : faded(colour(one.colour))) : undefined,
          width: one.kind === "bars" ? 0 : 1.75,
          dash: one.dash,
          paths: one.kind === "bars" ? bars : undefined,
          points: { show: false },
          value: one.value ?? ((_, value) => rate(value)),
        })),
      ],
    };
    this.plot = new window.uPlot(options, this.data, this.place);
    // Its legend follows the pointer; the chart's label says the same to those without one.
    this.place.querySelector(".u-legend")?.setAttribute("aria-hidden", "true");
  }
}

function fromZero(_, low, high) {
  return [Math.min(0, low ?? 0), high > 0 ? high * 1.08 : 1];
}
