// The review page: marks images, keeps the marks in this browser until they are sent, and sends them to Airflow's API.
"use strict";

(() => {
  const CHOICE_OF_KEY = { f: "favourite", s: "new_seed", p: "new_prompt", x: "reject", u: "" };
  const STEP_OF_KEY = { j: 1, k: -1 };
  const OPEN_STATES = ["awaiting_input", "deferred", "running"]; // since Airflow 3.3; before; about to wait

  const form = document.getElementById("answer");
  if (!form) return;
  const { address, question, option, param, perPage, count, page } = form.dataset;
  const button = form.querySelector("button");
  const result = document.getElementById("result");
  const articles = [...document.querySelectorAll("article[data-number]")];

  // --- marks, by image number; those of other pages too -------------------------------------------------------------

  const STORE = `imagen-review:${question}`; // a cleared task asks anew, under another id
  let marks = new Map();
  const load = () => {
    try {
      marks = new Map(JSON.parse(localStorage.getItem(STORE) ?? "[]"));
    } catch {
      // Storage is blocked or damaged: start without marks.
    }
  };
  const save = () => {
    try {
      if (marks.size) localStorage.setItem(STORE, JSON.stringify([...marks]));
      else localStorage.removeItem(STORE);
    } catch {
      report("This browser cannot keep your marks. Send them before you leave this page.", true);
    }
  };

  const part = (article, name) => article.querySelector(`[name="${name}"]`);
  const choiceOf = (article) => article.querySelector(".choices :checked").value;
  const reasonsOf = (article) => [...article.querySelectorAll("[name=reason]:checked")].map((box) => box.value);

  // What is sent about an image; null without a verdict.
  const verdictOf = (article) => {
    const choice = choiceOf(article);
    if (!choice) return null;
    const { promptIndex, imageIndex, sha256 } = article.dataset;
    const verdict = { prompt_index: Number(promptIndex), image_index: Number(imageIndex), choice };
    if (sha256) verdict.sha256 = sha256;
    const prompt = part(article, "prompt");
    if (choice === "new_prompt" && prompt.value !== prompt.defaultValue) verdict.prompt = prompt.value;
    if (choice !== "favourite") {
      const reasons = reasonsOf(article);
      const comment = part(article, "comment").value.trim();
      if (reasons.length) verdict.reasons = reasons;
      if (comment) verdict.comment = comment;
    }
    return verdict;
  };

  const show = (article) => {
    const choice = choiceOf(article);
    if (choice) article.dataset.choice = choice;
    else delete article.dataset.choice;
    article.querySelector(".changed").hidden = choice !== "new_prompt";
    article.querySelector(".wrong").hidden = !choice || choice === "favourite";
  };

  const restore = (article) => {
    const verdict = marks.get(Number(article.dataset.number)) ?? { choice: "" };
    const prompt = part(article, "prompt");
    article.querySelector(`.choices [value="${verdict.choice}"]`).checked = true;
    for (const box of article.querySelectorAll("[name=reason]"))
      box.checked = verdict.reasons?.includes(box.value) ?? false;
    part(article, "comment").value = verdict.comment ?? "";
    prompt.value = verdict.prompt ?? prompt.defaultValue;
    show(article);
  };

  const showCounts = () => {
    const chosen = [...marks.values()].map((verdict) => verdict.choice);
    const number = (...choices) => chosen.filter((choice) => choices.includes(choice)).length;
    const favourites = number("favourite");
    document.getElementById("counts").textContent =
      `${favourites} ${favourites === 1 ? "favourite" : "favourites"}, ` +
      `${number("new_seed", "new_prompt")} again, ${number("reject")} not good, ` +
      `${Number(count) - chosen.length} without a verdict`;
    button.disabled = !chosen.length;
  };

  const record = (article) => {
    const verdict = verdictOf(article);
    load(); // another tab may show another page of the same review
    if (verdict) marks.set(Number(article.dataset.number), verdict);
    else marks.delete(Number(article.dataset.number));
    show(article);
    report("");
    save();
    showCounts();
  };

  const choose = (article, choice) => {
    article.querySelector(`.choices [value="${choice}"]`).checked = true;
    record(article);
  };

  load();
  for (const article of articles) {
    restore(article);
    article.addEventListener("input", () => record(article));
    article.querySelector(".frame").addEventListener("click", () => {
      choose(article, choiceOf(article) === "favourite" ? "" : "favourite");
      article.focus({ preventScroll: true });
    });
  }
  showCounts();
  addEventListener("storage", (event) => {
    if (event.key !== STORE) return;
    load();
    articles.filter((article) => !article.contains(document.activeElement)).forEach(restore);
    showCounts();
  });

  addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (!(event.target instanceof Element) || event.target.matches("textarea")) return;
    const at = articles.indexOf(event.target.closest("article"));
    if (at < 0) return;
    const key = event.key.toLowerCase();
    if (key in CHOICE_OF_KEY) {
      choose(articles[at], CHOICE_OF_KEY[key]);
      if (key === "p") part(articles[at], "prompt").focus();
    } else if (key in STEP_OF_KEY) articles[at + STEP_OF_KEY[key]]?.focus();
    else return;
    event.preventDefault();
  });

  // --- sending ------------------------------------------------------------------------------------------------------

  const report = (text, isFailure = false) => {
    result.textContent = text;
    result.classList.toggle("failed", isFailure);
  };

  const MESSAGES = {
    401: "Your session has expired. Log in to Airflow in another tab, then send the review again.",
    403: "Airflow does not let you answer this task. Your marks are kept.",
    404: "This task no longer exists.",
    409: "Somebody else has answered first, so your answer was not sent. Reload the page to see theirs.",
    413: "The answer is too large for Airflow's web server. Shorten your comments.",
  };
  const request = async (options) => {
    const response = await fetch(address, { cache: "no-store", redirect: "error", ...options });
    if (!response.ok)
      throw new Error(MESSAGES[response.status] ?? `Airflow rejected the answer (HTTP ${response.status}). Try again.`);
    return response.json();
  };

  const findUnchangedPrompt = () =>
    [...marks].find(([, verdict]) => verdict.choice === "new_prompt" && !verdict.prompt?.trim())?.[0];

  const send = async () => {
    const unchanged = findUnchangedPrompt();
    if (unchanged !== undefined) {
      const link = document.createElement("a");
      link.href = `${page}&page=${Math.ceil(unchanged / Number(perPage))}#image-${unchanged}`;
      link.textContent = `Image ${unchanged}`;
      report("", true);
      result.append(link, " is to get a changed prompt: change it, or choose something else.");
      return;
    }
    const now = await request();
    if (now.response_received) throw new Error(MESSAGES[409]);
    if (now.task_instance.id !== question) throw new Error("This task was cleared and asks anew. Reload the page.");
    if (!OPEN_STATES.includes(now.task_instance.state))
      throw new Error(`This task no longer waits for an answer: it is ${now.task_instance.state}.`);
    const verdicts = [...marks].sort(([a], [b]) => a - b).map(([, verdict]) => verdict);
    const answer = {
      chosen_options: [option],
      params_input: { ...JSON.parse(form.dataset.otherParams), [param]: verdicts },
    };
    // Not a form: a page elsewhere cannot send JSON with this method in the visitor's name.
    await request({ method: "PATCH", headers: { "Content-Type": "application/json" }, body: JSON.stringify(answer) });
    marks.clear();
    save();
    for (const field of document.querySelectorAll("article :is(input, textarea)")) field.disabled = true;
    form.classList.add("sent");
    report("Sent. The run goes on.");
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    load();
    button.disabled = true;
    report("Sending…");
    try {
      await send();
    } catch (error) {
      report(error instanceof TypeError ? "Airflow does not answer. Your marks are kept; try again." : error.message, true);
    }
    button.disabled = form.classList.contains("sent") || !marks.size;
  });
})();
