// The form that asks for the key. It hands the key on and keeps none itself.

import { forgetKey, hasKey, onKeyNeeded } from "./api.js";
import { byId, say } from "./dom.js";

/** @param {() => void} given a key was given, or the one there was is forgotten: ask again */
export function askForKeys(given) {
  const dialog = byId("key-dialog");
  const field = byId("key");
  const wrong = byId("key-wrong");
  const button = byId("key-button");
  let answer = null;

  onKeyNeeded((isWrong) => {
    wrong.hidden = !isWrong;
    wrong.textContent = isWrong ? "The server does not know this key." : "";
    field.setAttribute("aria-invalid", String(isWrong));
    field.value = "";
    button.hidden = false;
    button.textContent = "Enter a key";
    dialog.showModal();
    field.focus();
    return new Promise((resolve) => {
      answer = resolve;
    });
  });

  const close = (key) => {
    field.value = "";
    dialog.close();
    answer?.(key);
    answer = null;
    button.textContent = key === null ? "Enter a key" : "Forget the key";
  };
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = field.value.trim();
    if (key !== "") close(key);
  });
  byId("key-cancel").addEventListener("click", () => close(null));
  // Escape.
  dialog.addEventListener("cancel", () => close(null));
  button.addEventListener("click", () => {
    if (hasKey()) {
      forgetKey();
      button.textContent = "Enter a key";
      say("The key is forgotten");
    }
    given();
  });
}
