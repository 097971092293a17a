// The form that asks for the key. It passes the key on and does not keep it.

import { forgetKey, hasKey, onKeyNeeded } from "./api.js";
import { byId, say } from "./dom.js";

/** @param {() => void} retry called when a key was forgotten, or the user wants to enter one */
export function askForKeys(retry) {
  const dialog = byId("key-dialog");
  const field = byId("key");
  const wrong = byId("key-wrong");
  const button = byId("key-button");
  let answer = null;

  onKeyNeeded((isWrong) => {
    wrong.hidden = !isWrong;
    wrong.textContent = isWrong ? "The server does not accept this key." : "";
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
  // The Escape key.
  dialog.addEventListener("cancel", () => close(null));
  button.addEventListener("click", () => {
    if (hasKey()) {
      forgetKey();
      button.textContent = "Enter a key";
      say("The key has been forgotten");
    }
    retry();
  });
}
