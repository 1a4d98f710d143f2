// Keys of the annotation page: a key chooses in the marked row and goes to the next.
() => {
  const CHOICES = { 1: "1", 2: "2", t: "tie", 0: "tie", b: "bad" };
  let task = "";
  let marked = 0;

  const rows = () => [...document.querySelectorAll("#rows .row")];
  const working = () => rows().some((row) => row.offsetParent !== null);

  function mark(index) {
    const all = rows();
    marked = Math.max(0, Math.min(index, all.length - 1));
    all.forEach((row, i) => row.classList.toggle("marked", i === marked));
  }

  // A new task begins at the first row and at the top of the page.
  new MutationObserver(() => {
    const shown = document.querySelector("[data-task]")?.dataset.task ?? "";
    if (shown !== task && working()) {
      task = shown;
      mark(0);
      window.scrollTo(0, 0);
    }
  }).observe(document.body, { childList: true, subtree: true, attributes: true });

  document.addEventListener("change", (event) => {
    const index = rows().findIndex((row) => row.contains(event.target));
    if (index >= 0) mark(index + 1);
  });

  // After a mouse click, keys act on the page, not on the clicked button.
  document.addEventListener("click", (event) => {
    if (event.detail > 0 && event.target.closest("button")) document.activeElement.blur();
  });

  document.addEventListener("keydown", (event) => {
    if (!working() || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    const button = event.target.closest?.("button");
    const key = event.key.toLowerCase();
    if (key in CHOICES) {
      rows()[marked].querySelector(`input[value="${CHOICES[key]}"]`)?.click();
    } else if (key === "arrowdown") mark(marked + 1);
    else if (key === "arrowup") mark(marked - 1);
    else if (key === "enter" && !button) document.querySelector("#save").click();
    else if (key === "s") document.querySelector("#skip").click();
    else return;
    event.preventDefault();
  }, true);
}
