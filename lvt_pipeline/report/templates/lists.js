// Filtering and ordering clips: by words of their name or label, and by a metric, worst or best first.
for (const tools of document.querySelectorAll("[data-list]")) {
  const list = document.getElementById(tools.dataset.list);
  const items = [...list.children];
  const values = new Map(items.map((item) => [item, JSON.parse(item.dataset.order)]));
  const [search, select, output] = ["input", "select", "output"].map((name) => tools.querySelector(name));
  const headings = [...(list.closest("table") || tools).querySelectorAll("th[data-key]")];

  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const [key, direction] = select.value.split(" ");
    const sign = direction === "falling" ? -1 : 1;
    const valueOf = (item) => values.get(item)[key];
    const ordered = key ? [...items].sort((a, b) => order(valueOf(a), valueOf(b), sign)) : items;
    if (ordered.some((item, index) => list.children[index] !== item)) list.append(...ordered);
    let shown = 0;
    for (const item of items) {
      item.hidden = !words.every((word) => item.dataset.text.toLowerCase().includes(word));
      shown += !item.hidden;
    }
    const noun = items.length === 1 ? "clip" : "clips";
    output.textContent = shown === items.length ? `${shown} ${noun}` : `${shown} of ${items.length} ${noun}`;
    for (const heading of headings) {
      const found = heading.dataset.key === key;
      heading.setAttribute("aria-sort", found ? (sign > 0 ? "ascending" : "descending") : "none");
    }
  }
  // Clips without a value come last in both directions.
  function order(a, b, sign) {
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return sign * (a - b);
  }
  for (const heading of headings) {
    heading.querySelector("button").addEventListener("click", () => {
      const options = [...select.options].filter((option) => option.value.split(" ")[0] === heading.dataset.key);
      select.value = options.find((option) => option.value !== select.value).value; // worst first, then best first
      update();
    });
  }
  search.addEventListener("input", update);
  select.addEventListener("change", update);
  update();
}
