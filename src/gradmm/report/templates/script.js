// Theme, and sorting and filtering of the tables of texts. All of it works on what the page holds: no text of a run
// stands in here, and nothing is made from strings. Without this script the page is the same, less these comforts.
(() => {
  "use strict";
  const KEY = "gradmm-report-theme";

  // Storage may be refused, as it is for pages from a disk in some browsers; the choice then lasts as long as the page.
  const remembered = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem(KEY, theme); } catch { /* lasts as long as the page */ } };

  const root = document.documentElement;
  const button = document.querySelector(".theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const show = () => button.setAttribute("aria-pressed", String(isDark()));
  const before = remembered();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember(root.dataset.theme);
    show();
  });
  prefersDark.addEventListener("change", show);
  button.hidden = false;
  show();

  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent;
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };

  // What has no value comes last, whatever the direction; equals keep their order.
  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "number" ? a - b : collator.compare(a, b));
  };

  const sortable = (table) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const press = document.createElement("button");
      press.type = "button";
      press.textContent = head.textContent;
      head.replaceChildren(press);
      press.addEventListener("click", () => {
        const rises = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", rises ? "ascending" : "descending");
        const keyed = [...body.rows].map((row) => [valueOf(row, column), row]);
        keyed.sort((a, b) => compare(a[0], b[0], rises ? 1 : -1));
        body.append(...keyed.map((pair) => pair[1]));
      });
    });
  };

  const filterable = (browser) => {
    const rows = [...browser.querySelectorAll("tbody tr")];
    const texts = rows.map((row) => row.querySelector(".text").textContent.toLowerCase());
    const [search, choice, count] = [".search", ".class", ".count"].map((name) => browser.querySelector(name));
    const filter = () => {
      const words = search.value.toLowerCase().trim();
      let shown = 0;
      rows.forEach((row, i) => {
        row.hidden = !((choice.value === "" || row.dataset.class === choice.value) && texts[i].includes(words));
        shown += !row.hidden;
      });
      count.textContent = `${shown} of ${rows.length} texts`;
      browser.querySelector(".empty").hidden = shown > 0;
    };
    search.addEventListener("input", filter);
    choice.addEventListener("change", filter);
    browser.querySelector(".controls").hidden = false;
    if (search.value || choice.value) filter(); // browsers put back what was typed before the page was loaded again
  };

  document.querySelectorAll(".browser").forEach((browser) => {
    sortable(browser.querySelector("table"));
    filterable(browser);
  });
})();
