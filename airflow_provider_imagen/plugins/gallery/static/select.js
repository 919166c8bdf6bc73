// Selected images: their number, ranges, the whole page; and downloads from a tab in an older Airflow.
"use strict";

(() => {
  const boxes = () => [...document.querySelectorAll('input[name="image"]')];
  const keys = new Set(); // of the selected images; a box that live.js replaces is ticked again
  let last = null; // the box that was clicked last, where a range starts

  const showSelection = () => {
    const form = document.getElementById("selection");
    if (!form) return;
    const all = boxes();
    const count = all.filter((box) => box.checked).length;
    form.querySelector(".count").textContent = `${count} selected`;
    for (const button of form.querySelectorAll("[data-least]"))
      button.disabled = count < Number(button.dataset.least) || count > Number(button.dataset.most ?? Infinity);
    const whole = document.getElementById("select-page");
    whole.parentElement.hidden = false;
    whole.checked = count > 0 && count === all.length;
    whole.indeterminate = count > 0 && count < all.length;
  };

  const set = (box, isChecked) => {
    box.checked = isChecked;
    keys[isChecked ? "add" : "delete"](box.value);
  };

  addEventListener("click", (event) => {
    const box = event.target;
    if (!(box instanceof HTMLInputElement)) return;
    if (box.name === "image") {
      const all = boxes();
      const [from, to] = [all.indexOf(last), all.indexOf(box)].sort((a, b) => a - b);
      for (const each of event.shiftKey && from >= 0 ? all.slice(from, to + 1) : [box]) set(each, box.checked);
      last = box;
    } else if (box.id === "select-page") {
      for (const each of boxes()) set(each, box.checked);
    } else return;
    showSelection();
  });

  const restore = () => {
    for (const box of boxes()) if (box.checked || keys.has(box.value)) set(box, true); // the browser may keep some
    showSelection();
  };
  addEventListener("pageshow", restore);
  addEventListener("refreshed", restore); // live.js

  // Keep what is as it was out of the URL.
  addEventListener("formdata", (event) => {
    for (const [name, value] of [...event.formData]) if (value === "") event.formData.delete(name);
  });

  // Before Airflow 3.3.2, its tabs forbid downloads (apache/airflow#71797), so the page around them starts them.
  const sandbox = window.frameElement?.sandbox;
  if (!sandbox?.length || sandbox.contains("allow-downloads")) return;
  const download = (event, url) => {
    const link = parent.document.createElement("a");
    link.href = url;
    link.download = "";
    parent.document.body.append(link);
    link.click();
    link.remove();
    event.preventDefault();
  };
  addEventListener("click", (event) => {
    const link = event.target instanceof Element && event.target.closest("a[download]");
    if (link) download(event, link.href);
  });
  addEventListener("submit", (event) => {
    const button = event.submitter;
    if (button?.dataset.download === undefined) return;
    download(event, `${event.target.action}?${new URLSearchParams(new FormData(event.target, button))}`);
  });
})();
