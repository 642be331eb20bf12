"use strict";
// The enlarged view: the slider's position is the share of the left picture; the right one covers the rest.
(() => {
  const dialog = document.getElementById("viewer");
  if (!dialog) return;
  const find = (selector) => dialog.querySelector(selector);
  const stage = find(".stage"), pair = find(".pair"), slider = find("input"), zoom = find("[data-do=zoom]");
  const sides = { left: find("[data-side=left]"), right: find("[data-side=right]") };
  const articles = [...document.querySelectorAll(".image")].filter((article) => article.querySelector("img"));
  const shown = { left: new Image(), right: new Image() };
  pair.prepend(shown.left, shown.right);
  let current = 0;

  const panels = () => [...articles[current].querySelectorAll(".panels img")];
  const titled = (title) => panels().find((image) => image.dataset.title === title);
  const whole = (image) => image.dataset.whole || image.src;

  function split(percent) {
    slider.value = percent;
    pair.style.setProperty("--split", `${slider.value}%`);
  }

  function draw(side) {
    const source = titled(sides[side].value), image = shown[side];
    image.src = whole(source);
    image.alt = source.alt;
    image.className = `${side} ${source.className}`;
    // Whole errors are a layer over the input.
    const isLayer = source.classList.contains("errors") && source.dataset.whole;
    image.style.backgroundImage = isLayer ? `url("${whole(titled("input"))}")` : "";
  }

  function show(index, left, right) {
    current = (index + articles.length) % articles.length;
    const article = articles[current], first = panels()[0], titles = panels().map((image) => image.dataset.title);
    const width = first.getAttribute("width"), height = first.getAttribute("height");
    for (const select of Object.values(sides)) select.replaceChildren(...titles.map((title) => new Option(title)));
    sides.left.value = titles.includes(left) ? left : titles[0];
    sides.right.value = titles.includes(right) ? right : titles.at(-1);
    draw("left");
    draw("right");
    dialog.classList.toggle("single", titles.length === 1);
    pair.style.setProperty("--width", width);
    pair.style.setProperty("--height", height);
    find("h2").textContent = `${current + 1} / ${articles.length}  ${article.dataset.name}`;
    find(".size").textContent = `${article.dataset.scores}; ${width} \u00d7 ${height} pixels${article.dataset.note}`;
    const legend = [...article.querySelector(".legend").children].map((entry) => entry.cloneNode(true));
    find(".legend").replaceChildren(...legend);
  }

  function open(article, title) {
    const isClassMap = !title || title === "ground truth" || title.startsWith("prediction");
    show(articles.indexOf(article), "ground truth", !title || title === "ground truth" ? "prediction" : title);
    split(isClassMap ? 50 : 0);
    dialog.showModal();
    stage.focus();
  }

  const actions = {
    close: () => dialog.close(),
    previous: () => show(current - 1, sides.left.value, sides.right.value),
    next: () => show(current + 1, sides.left.value, sides.right.value),
    blink: () => split(slider.value > 50 ? 0 : 100),
    zoom: () => zoom.setAttribute("aria-pressed", stage.classList.toggle("actual")),
  };
  const keys = { ArrowLeft: "previous", ArrowRight: "next", " ": "blink", z: "zoom" };

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".enlarge, a[href^='#image-']");
    if (!button) return;
    const article = button.closest(".image") || document.querySelector(button.getAttribute("href"));
    if (!articles.includes(article)) return;
    event.preventDefault();
    open(article, button.querySelector("img")?.dataset.title);
  });
  dialog.addEventListener("click", (event) => {
    const action = event.target.closest("[data-do]")?.dataset.do;
    if (!action) return;
    actions[action]();
    if (event.detail && dialog.open) stage.focus(); // after a mouse or a finger, keys are for the picture again
  });
  dialog.addEventListener("keydown", (event) => {
    const action = keys[event.key], hasOwnKeys = event.key === " " ? "button, select" : "input, select";
    if (!action || event.target.closest(hasOwnKeys) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    actions[action]();
  });
  for (const side of Object.keys(sides)) sides[side].addEventListener("change", () => draw(side));
  slider.addEventListener("input", () => split(slider.value));
  stage.addEventListener("pointerdown", (event) => {
    if (stage.classList.contains("actual") || event.button) return;
    stage.setPointerCapture(event.pointerId);
    drag(event);
  });
  stage.addEventListener("pointermove", (event) => stage.hasPointerCapture(event.pointerId) && drag(event));

  function drag(event) {
    const box = pair.getBoundingClientRect();
    split((100 * (event.clientX - box.left)) / box.width);
  }
})();
