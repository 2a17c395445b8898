// The videos of a clip play as one: a button, a slider over frames, keys, and a loop that keeps them on the same frame.
(() => {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  showFirst();
  const clips = [...document.querySelectorAll(".clip[data-frames]")].map(prepare);
  const everything = document.querySelector(".play-all");
  const speed = document.querySelector(".speed");

  // The overview begins with the first clip, playing.
  function showFirst() {
    const place = document.getElementById("first-look");
    const clip = document.querySelector(".clip[data-frames]");
    if (!clip) return;
    const copy = clip.cloneNode(true);
    copy.removeAttribute("id");
    copy.querySelector("details").remove();
    place.append(copy);
  }

  function prepare(element) {
    const videos = [...element.querySelectorAll("video")];
    const frames = Number(element.dataset.frames);
    const fps = Number(element.dataset.fps);
    const priming = Number(element.dataset.priming);
    const button = element.querySelector("button");
    const slider = element.querySelector("input");
    const output = element.querySelector("output");
    const ruler = [...element.querySelectorAll(".ruler span")];
    const lead = element.querySelector("video[data-leads]"); // as long as any
    const clip = { element, wanted: false, visible: false, paused: false, update };
    let playing = false;
    let time = null; // where a reader has put the videos, also those that are not loaded yet

    for (const video of videos) {
      video.controls = false;
      video.tabIndex = -1;
      video.addEventListener("error", () => fromBlob(video), { once: true });
      video.addEventListener("loadeddata", () => {
        video.dataset.state = "ready";
        if (time !== null && !playing) place(video);
        show(Number(slider.value));
      });
    }
    lead.addEventListener("ended", () => { if (playing) { seek(0); start(); } });
    button.addEventListener("click", toggle);
    slider.addEventListener("input", () => step(Number(slider.value)));
    element.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const inside = event.target.closest("button, summary, .strips");
      const onSlider = event.target === slider;
      const at = Number(slider.value);
      const move = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: frames - 1 }[event.key];
      if (event.key === " " && !inside) toggle();
      else if (move !== undefined && !onSlider && !event.target.closest(".strips")) step(move);
      else return;
      event.preventDefault();
    });

    function toggle() {
      clip.paused = clip.wanted;
      clip.wanted = !clip.wanted;
      update();
    }
    function step(frame) {
      clip.paused = true;
      clip.wanted = false;
      update();
      seek(frame);
    }
    function show(frame) {
      const shown = Math.min(Math.max(frame, 0), frames - 1);
      slider.value = shown;
      const kind = shown < priming ? "priming" : "sampled";
      output.textContent = `frame ${shown + 1} of ${frames}, ${kind}`;
      slider.setAttribute("aria-valuetext", output.textContent);
      element.classList.toggle("is-priming", shown < priming);
      ruler.forEach((number, index) => number.classList.toggle("now", index === shown));
    }
    function seek(frame) {
      time = (Math.min(Math.max(frame, 0), frames - 1) + 0.5) / fps;
      videos.forEach(place);
      show(frame);
    }
    function place(video) {
      video.currentTime = Math.min(time, Math.max(video.duration - 0.01, 0) || 0);
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
})();
