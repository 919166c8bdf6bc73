// What the pages cannot do by themselves: Airflow's theme, pictures that are gone, copying, arrow keys.
"use strict";

(() => {
  const root = document.documentElement;

  // Airflow keeps the theme its user chose here ("light", "dark" or "system"); style sheets follow the system without it.
  const followTheme = () => {
    let theme = null;
    try {
      theme = localStorage.getItem("theme");
    } catch {
      // No storage for this page: the system's theme it is.
    }
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  followTheme();
  addEventListener("storage", followTheme);
  if (parent !== self) root.classList.add("embedded");

  // Errors of pictures do not bubble, so they are caught on the way down.
  const isGone = (image) => {
    image.hidden = true;
    const note = image.parentElement.querySelector(".gone");
    if (note) note.hidden = false;
  };
  addEventListener("error", (event) => event.target instanceof HTMLImageElement && isGone(event.target), true);

  const copy = async (button) => {
    const source = document.getElementById(button.dataset.copy);
    let done = true;
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      getSelection().selectAllChildren(source); // without HTTPS there is no clipboard to write to
      done = document.execCommand("copy");
    }
    document.getElementById("copied").textContent = done ? "Copied." : "Selected; copy it with the keyboard.";
  };
  addEventListener("click", (event) => {
    const button = event.target instanceof Element && event.target.closest("[data-copy]");
    if (button) copy(button);
  });

  const moveInGrid = (key) => {
    const cards = [...document.querySelectorAll("a.card")];
    const at = cards.indexOf(document.activeElement);
    if (at < 0) return false;
    const columns = cards.filter((card) => card.offsetTop === cards[at].offsetTop).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
    const next = step && cards[at + step];
    if (next) next.focus();
    return Boolean(next);
  };
  addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (document.activeElement?.tagName === "PRE") return;
    if (moveInGrid(event.key)) {
      event.preventDefault();
      return;
    }
    const relation = { ArrowLeft: "prev", ArrowRight: "next", Escape: "up" }[event.key];
    const link = relation && document.querySelector(`main.single a[rel="${relation}"], .top a[rel="${relation}"]`);
    if (link) link.click();
  });
})();
