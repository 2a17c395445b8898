"use strict";
// The videos of a clip play as one: a button, a slider over frames, and a loop that keeps them on the same frame.
(() => {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const clips = [...document.querySelectorAll(".clip[data-frames]")].map(prepare);
  const everything = document.getElementById("play-all");
  const speed = document.getElementById("speed");

  function prepare(element) {
    const videos = [...element.querySelectorAll("video")];
    const frames = Number(element.dataset.frames);
    const fps = Number(element.dataset.fps);
    const given = Number(element.dataset.given);
    const button = element.querySelector("button");
    const slider = element.querySelector("input");
    const output = element.querySelector("output");
    const lead = videos[videos.length - 1]; // the sample, which is as long as any
    const clip = { element, wanted: false, visible: false, paused: false, update };
    let playing = false;

    for (const video of videos) {
      video.controls = false;
      video.addEventListener("error", () => fromBlob(video), { once: true });
      video.addEventListener("loadeddata", () => { video.dataset.state = "ready"; show(Number(slider.value)); });
    }
    lead.addEventListener("ended", () => { if (playing) { seek(0); start(); } });
    button.addEventListener("click", () => { clip.paused = playing; clip.wanted = !playing; update(); });
    slider.addEventListener("input", () => {
      clip.paused = true;
      clip.wanted = false;
      update();
      seek(Number(slider.value));
    });

    function show(frame) {
      const shown = Math.min(Math.max(frame, 0), frames - 1);
      slider.value = shown;
      const kind = shown < given ? "given" : "sampled";
      output.textContent = `frame ${shown + 1} of ${frames}, ${kind}`;
      slider.setAttribute("aria-valuetext", output.textContent);
      element.classList.toggle("is-given", shown < given);
    }
    function seek(frame) {
      for (const video of videos) video.currentTime = Math.min((frame + 0.5) / fps, Math.max(video.duration - 0.01, 0) || 0);
      show(frame);
    }
    function start() {
      for (const video of videos) {
        video.playbackRate = Number(speed.value);
        video.play().catch(() => {});
      }
    }
    function follow() {
      if (!playing) return;
      for (const video of videos) {
        if (video !== lead && !video.ended && Math.abs(video.currentTime - lead.currentTime) > 0.6 / fps) {
          video.currentTime = lead.currentTime;
        }
      }
      show(Math.floor(lead.currentTime * fps + 0.001));
      requestAnimationFrame(follow);
    }
    function update() {
      const should = clip.wanted && clip.visible && !document.hidden;
      button.textContent = clip.wanted ? "Pause" : "Play";
      button.setAttribute("aria-pressed", String(clip.wanted));
      if (should === playing) {
        if (playing) start(); // another speed
        return;
      }
      playing = should;
      if (playing) {
        if (lead.ended || Number(slider.value) >= frames - 1) seek(0);
        start();
        requestAnimationFrame(follow);
      } else {
        for (const video of videos) video.pause();
      }
      label();
    }
    show(0);
    return clip;
  }

  // Some phones refuse videos written into the page but play the same bytes from memory.
  function fromBlob(video) {
    const [head, data] = video.src.split(",");
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    video.src = URL.createObjectURL(new Blob([bytes], { type: head.slice(5).split(";")[0] }));
  }

  function label() {
    if (everything) everything.textContent = clips.some((clip) => clip.wanted) ? "Pause all" : "Play all";
  }
  if (everything) {
    everything.addEventListener("click", () => {
      const play = !clips.some((clip) => clip.wanted);
      for (const clip of clips) { clip.wanted = play; clip.paused = !play; clip.update(); }
      label();
    });
    speed.addEventListener("change", () => { for (const clip of clips) clip.update(); });
  }
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const clip = clips.find((candidate) => candidate.element === entry.target);
      clip.visible = entry.isIntersecting;
      if (clip.visible && !calm && !clip.paused) clip.wanted = true;
      clip.update();
    }
    label();
  }, { threshold: 0.25 });
  for (const clip of clips) watcher.observe(clip.element);
  document.addEventListener("visibilitychange", () => { for (const clip of clips) clip.update(); });

  // A link to a stage's record opens it.
  function open() {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  }
  addEventListener("hashchange", open);
  open();
})();
