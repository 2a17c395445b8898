// Pointing at a curve reads its values: a line at the nearest point, and a note with the number of each curve there.
for (const plot of document.querySelectorAll(".plot")) {
  const svg = plot.querySelector("svg");
  const reader = svg.querySelector(".reader");
  const lines = reader ? [...svg.querySelectorAll(".line")] : [];
  if (!lines.length) continue;
  const numbers = (line) => line.querySelector("path:not([transform])")?.getAttribute("d").match(/-?[\d.]+/g).map(Number);
  const marks = (line) => [...line.querySelectorAll("path[transform]")].flatMap((mark) => {
    return mark.getAttribute("transform").match(/-?[\d.]+/g).map(Number);
  });
  const points = lines.map((line) => {
    const flat = numbers(line) || marks(line); // a line of one point is only a marker
    return flat.flatMap((x, index) => (index % 2 ? [] : [[x, flat[index + 1]]]));
  });
  const axis = (text) => {
    const [start, end, low, high, isLog] = text.split(" ").map(Number);
    return (place) => {
      const share = (place - start) / (end - start);
      return isLog ? low * (high / low) ** share : low + share * (high - low);
    };
  };
  const xOf = axis(reader.dataset.x);
  const yOf = axis(reader.dataset.y);
  const note = document.createElement("div");
  note.className = "note";
  note.hidden = true;
  plot.append(note);
  const rule = document.createElementNS("http://www.w3.org/2000/svg", "line");
  rule.setAttribute("class", "rule");
  rule.setAttribute("y1", reader.getAttribute("y"));
  rule.setAttribute("y2", Number(reader.getAttribute("y")) + Number(reader.getAttribute("height")));

  const short = (value) => {
    return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
  };
  const closest = (candidates, x) => {
    return candidates.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const width = svg.viewBox.baseVal.width;
    const x = ((event.clientX - box.left) / box.width) * width;
    const nearest = points.map((line) => closest(line, x));
    const at = closest(nearest, x)[0];
    rule.setAttribute("x1", at);
    rule.setAttribute("x2", at);
    svg.append(rule);
    const rows = [`${reader.dataset.label} ${short(xOf(at))}`];
    nearest.forEach((point, index) => {
      if (Math.abs(point[0] - at) < 0.5) rows.push(`${lines[index].dataset.name} ${short(yOf(point[1]))}`);
    });
    note.textContent = rows.join("\n");
    note.hidden = false;
    const isLeft = at < 0.55 * width;
    note.style.left = isLeft ? `${(100 * at) / width}%` : "auto";
    note.style.right = isLeft ? "auto" : `${100 - (100 * at) / width}%`;
  });
  svg.addEventListener("pointerleave", () => { note.hidden = true; rule.remove(); });
}
