// Without scripts all pictures stand below each other, and tables are opened by hand.
for (const slides of document.querySelectorAll(".slides")) {
  const rows = [...slides.querySelectorAll(".row")];
  if (rows.length < 2) continue;
  const label = document.createElement("label");
  const range = document.createElement("input");
  const output = document.createElement("output");
  range.type = "range";
  range.max = String(rows.length - 1);
  range.value = range.max;
  const show = () => {
    rows.forEach((row, i) => row.classList.toggle("off", i !== Number(range.value)));
    output.textContent = rows[range.value].querySelector("figcaption").textContent;
    range.setAttribute("aria-valuetext", output.textContent);
  };
  range.addEventListener("input", show);
  label.append("Over time ", range, " ", output);
  slides.prepend(label);
  show();
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => (one.open = true)));
