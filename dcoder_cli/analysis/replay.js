"use strict";
// Replays denoising. All text reaches the page through textContent: what a model wrote is never read as HTML.
const palettes = JSON.parse(document.getElementById("palettes").textContent);

function rgb(hex) { return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)); }

function colourOf(share, name) {
  const anchors = palettes[name];
  const place = Math.min(Math.max(share, 0), 1) * (anchors.length - 1);
  const index = Math.min(Math.floor(place), anchors.length - 2);
  const low = rgb(anchors[index]), high = rgb(anchors[index + 1]);
  return low.map((value, i) => Math.round(value + (high[i] - value) * (place - index)));
}

function inkOn(background) {
  const linear = background.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : Math.pow((part + 0.055) / 1.055, 2.4);
  });
  const light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return 1.05 / (light + 0.05) > (light + 0.05) / 0.05 ? "#fff" : "#000";
}

function start(root) {
  const samples = JSON.parse(root.querySelector("script").textContent);
  const part = (name) => root.querySelector("[data-part=" + name + "]");
  const pick = part("sample"), slider = part("step"), play = part("play"), speed = part("speed");
  const colours = part("colours"), scale = part("scale"), status = part("status"), text = part("text"), prompt = part("prompt");
  let sample = null, spans = [], timer = null;

  function stop() {
    if (timer !== null) clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }

  function show() {
    const now = Number(slider.value), name = colours.value, last = Math.max(sample.order.length - 1, 1);
    let done = 0;
    const fresh = [];
    spans.forEach((span, i) => {
      const rank = sample.rank[i];
      const visible = rank < now;
      done += visible ? 1 : 0;
      span.classList.toggle("masked", !visible);
      span.classList.toggle("fresh", rank === now - 1 && now < sample.order.length);
      if (rank === now - 1) fresh.push(sample.pieces[i].trim());
      if (visible) {
        const background = colourOf(rank / last, name);
        span.style.backgroundColor = "rgb(" + background.join(",") + ")";
        span.style.color = inkOn(background);
      } else {
        span.style.backgroundColor = "";
        span.style.color = "";
      }
    });
    const place = now === 0 ? "before the first step" : "step " + sample.order[now - 1] + " (" + now + " of " + sample.order.length + ")";
    status.textContent = place + ", " + done + " of " + spans.length + " tokens" + (fresh.length ? ", committed: " + fresh.join(" ").slice(0, 60) : "");
    slider.setAttribute("aria-valuetext", status.textContent);
  }

  function recolour() {
    const stops = palettes[colours.value];
    scale.style.background = "linear-gradient(to right, " + stops.join(", ") + ")";
    show();
  }

  function choose() {
    stop();
    sample = samples[Number(pick.value)];
    text.replaceChildren();
    spans = sample.pieces.map((piece, i) => {
      const span = document.createElement("span");
      span.className = "token";
      span.textContent = piece;
      let about = "token " + i + ", step " + sample.order[sample.rank[i]];
      if (sample.confidence && sample.confidence[i] !== null) about += ", confidence " + sample.confidence[i];
      if (sample.entropy && sample.entropy[i] !== null) about += ", entropy " + sample.entropy[i] + " nats";
      span.title = about;
      text.appendChild(span);
      return span;
    });
    prompt.textContent = sample.prompt;
    prompt.parentElement.hidden = !sample.prompt;
    slider.max = String(sample.order.length);
    slider.value = "0";
    show();
  }

  function tick() {
    if (Number(slider.value) >= Number(slider.max)) { stop(); return; }
    slider.value = String(Number(slider.value) + 1);
    show();
  }

  function run() {
    play.textContent = "Pause";
    timer = setInterval(tick, 1000 / Number(speed.value));
  }

  samples.forEach((entry, i) => {
    const option = document.createElement("option");
    option.value = String(i);
    option.textContent = entry.label;
    pick.appendChild(option);
  });
  play.addEventListener("click", () => {
    if (timer !== null) { stop(); return; }
    if (slider.value === slider.max) slider.value = "0";
    show();
    run();
  });
  speed.addEventListener("change", () => { if (timer !== null) { stop(); run(); } });
  slider.addEventListener("input", () => { stop(); show(); });
  colours.addEventListener("change", recolour);
  pick.addEventListener("change", choose);
  choose();
  recolour();
}

document.querySelectorAll(".replay").forEach(start);
