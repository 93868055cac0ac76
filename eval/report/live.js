// Asks the server for the tags of the parts, and replaces the parts whose tag has changed. Stops when no answer comes.
const said = document.getElementById("connection"), wait = 1000 * document.body.dataset.every;

async function ask(path) {
  const answer = await fetch(path, {cache: "no-cache"}); // with If-None-Match
  if (!answer.ok) throw new Error(answer.status);
  return answer;
}

function hint() {
  for (const one of document.querySelectorAll(".wide")) one.classList.toggle("scrolls", one.scrollWidth > one.clientWidth + 1);
}

async function replace(name) {
  const answer = await ask(`part/${name}`), part = document.getElementById(name);
  const before = part.querySelector(".wide"), left = before ? before.scrollLeft : 0, focused = document.activeElement === before;
  part.innerHTML = await answer.text();
  part.dataset.tag = answer.headers.get("ETag").replaceAll('"', "");
  part.closest("section").hidden = !part.innerHTML;
  const after = part.querySelector(".wide");
  if (after) { after.scrollLeft = left; if (focused) after.focus(); }
  hint();
}

async function look() {
  try {
    const {title, parts} = await (await ask("state")).json();
    document.title = document.querySelector("h1").textContent = title;
    for (const [name, tag] of Object.entries(parts)) if (document.getElementById(name).dataset.tag !== tag) await replace(name);
  } catch {
    said.className = "ended";
    said.textContent = `The server has ended (${new Date().toLocaleTimeString()}). This page no longer changes; reload it once the server runs again.`;
    return;
  }
  setTimeout(look, wait);
}

addEventListener("resize", hint);
hint();
setTimeout(look, wait);
