// Airflow's theme and time zone, unavailable images, the copy buttons, links to Airflow and arrow keys.
"use strict";

(() => {
  const root = document.documentElement;

  // Airflow stores the user's theme here ("light", "dark" or "system"); without it, the style sheet follows the system.
  const followTheme = () => {
    let theme = null;
    try {
      theme = localStorage.getItem("theme");
    } catch {
      // Storage is blocked: use the system's theme.
    }
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  followTheme();
  addEventListener("storage", followTheme);
  if (parent !== self) root.classList.add("embedded");

  // Airflow's pages show times in the zone that the user chose there, stored as JSON, else in the browser's.
  const showTimes = () => {
    let timeZone;
    try {
      timeZone = JSON.parse(localStorage.getItem("timezone")) ?? undefined;
    } catch {
      // Storage is blocked, or holds something else.
    }
    const two = "2-digit";
    const parts = { year: "numeric", month: two, day: two, hour: two, minute: two, second: two, timeZoneName: "short" };
    try {
      const format = new Intl.DateTimeFormat("sv-SE", { ...parts, timeZone }); // Swedish dates are ISO 8601
      for (const time of document.querySelectorAll("time")) time.textContent = format.format(new Date(time.dateTime));
    } catch {
      // An unknown zone or date: keep the server's text.
    }
  };
  addEventListener("DOMContentLoaded", showTimes);
  addEventListener("storage", showTimes);
  addEventListener("refreshed", showTimes); // live.js

  // Load errors of images do not bubble, so listen in the capture phase.
  const showUnavailable = (image) => {
    image.hidden = true;
    const note = image.parentElement.querySelector(".unavailable");
    if (note) note.hidden = false;
  };
  addEventListener("error", (event) => event.target instanceof HTMLImageElement && showUnavailable(event.target), true);

  const copy = async (button) => {
    const source = document.getElementById(button.dataset.copy);
    let done = true;
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      getSelection().selectAllChildren(source); // the clipboard API needs HTTPS
      done = document.execCommand("copy");
    }
    const status = button.parentElement.querySelector("[role=status]");
    status.textContent = done ? "Copied." : "Selected. Press Ctrl+C or ⌘C to copy.";
  };
  addEventListener("click", (event) => {
    const button = event.target instanceof Element && event.target.closest("[data-copy]");
    if (button) copy(button);
  });

  // Airflow's tabs do not let a page in them navigate the window, so the page around them follows links to Airflow.
  const sandbox = window.frameElement?.sandbox;
  const isConfined = sandbox?.length > 0 && !sandbox.contains("allow-top-navigation-by-user-activation");
  addEventListener("click", (event) => {
    const link = isConfined && event.target instanceof Element && event.target.closest("a[target=_top]");
    if (!link || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const outside = parent.document.createElement("a");
    outside.href = link.href;
    parent.document.body.append(outside);
    outside.click();
    outside.remove();
  });

  // The nearest card above or below; rows may differ in length.
  const nextRow = (cards, from, isBelow) => {
    const here = from.getBoundingClientRect();
    let next = null;
    let least = Infinity;
    for (const card of cards) {
      const box = card.getBoundingClientRect();
      const distance = 10 * Math.abs(box.top - here.top) + Math.abs(box.left - here.left);
      const isThere = isBelow ? box.top >= here.bottom : box.bottom <= here.top;
      if (isThere && distance < least) [next, least] = [card, distance];
    }
    return next;
  };

  const moveInGrid = (key) => {
    const cards = [...document.querySelectorAll(".card")];
    const from = document.activeElement;
    const at = cards.indexOf(from);
    if (at < 0) return false;
    let next = { ArrowLeft: cards[at - 1], ArrowRight: cards[at + 1] }[key];
    if (key === "ArrowUp" || key === "ArrowDown") next = nextRow(cards, from, key === "ArrowDown");
    next?.focus();
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
