// Light or dark as the system is set, or as the reader chose here; applied before anything is shown.
(() => {
  const key = "lvt-report-colours";
  const root = document.documentElement;
  const remembered = () => { try { return localStorage.getItem(key) || ""; } catch { return ""; } };
  const apply = (theme) => { if (theme) root.dataset.theme = theme; else delete root.dataset.theme; };
  apply(remembered());
  addEventListener("DOMContentLoaded", () => {
    const select = document.getElementById("theme");
    select.value = remembered();
    select.addEventListener("change", () => {
      apply(select.value);
      try { localStorage.setItem(key, select.value); } catch { /* a private window forgets */ }
    });
  });
})();
