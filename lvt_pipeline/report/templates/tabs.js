// Sections become tabs (WAI-ARIA tabs pattern): arrow keys, Home and End move, links into a section open it. Without
// scripts, and on paper, all sections are there one below the other. The browser's search finds what is in hidden ones.
(() => {
  const bar = document.querySelector(".tabs");
  const tabs = [...bar.querySelectorAll("a")];
  const panels = tabs.map((tab) => document.getElementById(tab.hash.slice(1)));
  bar.setAttribute("role", "tablist");
  document.documentElement.classList.add("has-tabs");
  tabs.forEach((tab, index) => {
    const panel = panels[index];
    tab.id = `tab-${panel.id}`;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", panel.id);
    panel.setAttribute("role", "tabpanel");
    panel.setAttribute("aria-labelledby", tab.id);
    panel.tabIndex = 0;
    tab.addEventListener("click", (event) => { event.preventDefault(); select(index, true); });
    panel.addEventListener("beforematch", () => select(index, false));
  });
  bar.addEventListener("keydown", (event) => {
    const index = tabs.indexOf(document.activeElement);
    const last = tabs.length - 1;
    const right = index === last ? 0 : index + 1;
    const left = index === 0 ? last : index - 1;
    const next = { ArrowRight: right, ArrowLeft: left, Home: 0, End: last, " ": index }[event.key];
    if (index < 0 || next === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    select(next, true);
    tabs[next].focus();
  });

  function select(index, remember) {
    tabs.forEach((tab, other) => {
      tab.setAttribute("aria-selected", String(other === index));
      tab.tabIndex = other === index ? 0 : -1;
      if (other === index) panels[other].removeAttribute("hidden");
      else panels[other].setAttribute("hidden", "until-found");
    });
    const { left, width } = tabs[index].getBoundingClientRect();
    bar.scrollBy({ left: left + width / 2 - innerWidth / 2 });
    if (remember) {
      history.replaceState(null, "", tabs[index].hash);
      if (scrollY > bar.parentElement.offsetTop) scrollTo({ top: bar.parentElement.offsetTop, behavior: "instant" });
    }
  }
  // A link to anything inside a section opens that section, and the details it points to.
  function follow() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const index = target ? panels.findIndex((panel) => panel.contains(target)) : 0;
    if (index < 0) return;
    select(index, false);
    if (!target) return;
    if (target.tagName === "DETAILS") target.open = true;
    if (target === panels[index]) scrollTo({ top: 0, behavior: "instant" });
    else target.scrollIntoView({ block: "center", behavior: "instant" });
  }
  addEventListener("hashchange", follow);
  follow();
})();
