// Flower's page of workers asks a global whether it looks again by itself.
var autorefresh = Number(document.currentScript.dataset.on);
