// The page of `lvt play`: keys and sliders make an action, the server samples the next frame, the page shows it.
"use strict";
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const part = (id) => document.getElementById(id);
  const KEYS = [["ArrowLeft", "ArrowRight"], ["ArrowDown", "ArrowUp"], ["a", "d"], ["s", "w"]]; // of the first axes
  const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowDown: "↓", ArrowUp: "↑" };
  const held = new Set();
  const sliders = [];
  let fps = 10;
  let isPlaying = false;
  let run = 0; // number of the loop that plays; older ones end
  let before = Promise.resolve(); // requests are sent one after another

  function ask(name, request) {
    const answer = before.then(() => post(name, request));
    before = answer.catch(() => {});
    return answer;
  }

  async function post(name, request) {
    let response;
    try {
      response = await fetch(name, { method: "POST", body: JSON.stringify(request) });
    } catch {
      throw new Error("lvt play has ended; start it again and open the new address");
    }
    const answer = await response.json();
    if (answer.error) throw new Error(answer.error);
    return answer;
  }

  const wait = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
  const report = (text) => { part("message").textContent = text; };

  function show(picture, number, isSampled) {
    part("picture").src = "data:image/png;base64," + picture;
    part("picture").classList.toggle("sampled", isSampled);
    part("frame").textContent = number;
  }

  // The action now: what the keys say, else the sliders.
  function action() {
    return facts.axes.map((axis, index) => {
      const [less, more] = (KEYS[index] || []).map((key) => held.has(key));
      const value = less === more ? Number(sliders[index].value) : less ? axis.low : axis.high;
      sliders[index].output.textContent = value.toFixed(2);
      return value;
    });
  }

  function setPlaying(now) {
    isPlaying = now;
    part("play").textContent = now ? "Pause" : "Play";
    part("play").setAttribute("aria-pressed", now);
  }

  async function play() {
    if (isPlaying) return;
    setPlaying(true);
    report("");
    const times = [];
    const mine = ++run;
    try {
      while (isPlaying && mine === run) {
        const begun = performance.now();
        const answer = await ask("step", { action: action() });
        show(answer.pictures[0], answer.frames, true);
        await wait(begun + 1000 / fps - performance.now());
        times.push(performance.now() - begun);
        const last = times.slice(-10);
        part("speed").textContent = (1000 * last.length / last.reduce((sum, one) => sum + one, 0)).toFixed(1);
      }
    } catch (error) {
      setPlaying(false);
      report(error.message);
    }
  }

  async function restart() {
    setPlaying(false);
    held.clear();
    try {
      const answer = await ask("restart", { clip: part("clip").value, seed: Number(part("seed").value) });
      fps = answer.fps;
      report("");
      show(answer.pictures.at(-1), answer.frames, false);
    } catch (error) {
      report(error.message);
    }
  }

  async function save() {
    try {
      report("Saved " + (await ask("save", {})).saved.join(" and "));
    } catch (error) {
      report(error.message);
    }
  }

  function addAxis(axis, index) {
    const row = document.createElement("div");
    const label = document.createElement("label");
    const slider = document.createElement("input");
    const name = document.createElement("span");
    slider.output = document.createElement("output");
    row.className = "axis";
    Object.assign(slider, { type: "range", id: `axis-${index}`, min: axis.low, max: axis.high, step: "any" });
    slider.value = axis.rest;
    label.htmlFor = slider.id;
    const keys = KEYS[index] ? `  ${KEYS[index].map((key) => NAMES[key] || key.toUpperCase()).join(" ")}` : "";
    name.textContent = axis.name + keys;
    label.append(name, slider.output);
    row.append(label, slider);
    part("axes").append(row);
    slider.addEventListener("input", action);
    slider.addEventListener("pointerup", () => slider.blur()); // so that the arrow keys act again
    slider.addEventListener("dblclick", () => { slider.value = axis.rest; action(); });
    sliders.push(slider);
  }

  const keyOf = (event) => (event.key.length === 1 ? event.key.toLowerCase() : event.key);

  addEventListener("keydown", (event) => {
    const key = keyOf(event);
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (KEYS.slice(0, facts.axes.length).flat().includes(key)) {
      event.preventDefault();
      held.add(key);
      action();
      play();
    } else if (key === "r" && !event.repeat) {
      restart();
    } else if (key === " " && !event.target.matches("button")) {
      event.preventDefault();
      if (!event.repeat) toggle();
    }
  });
  addEventListener("keyup", (event) => { held.delete(keyOf(event)); action(); });
  addEventListener("blur", () => held.clear());

  const toggle = () => { if (isPlaying) setPlaying(false); else play(); };
  part("play").addEventListener("click", toggle);
  part("restart").addEventListener("click", restart);
  part("save").addEventListener("click", save);
  part("clip").addEventListener("change", () => { part("clip").blur(); restart(); });
  part("seed").addEventListener("change", restart);
  for (const id of facts.clips) part("clip").append(new Option(id, id, false, id === facts.clip));
  part("seed").value = facts.seed;
  facts.axes.forEach(addAxis);
  action();
  part("lede").textContent = facts.axes.length
    ? "Hold a key or move a slider: the next frames follow."
    : "This prior was trained without actions, so keys do nothing. Play continues the clip.";
  restart();
})();
