import { Failure } from "./failure.js";
import { recall, remember } from "./memory.js";
import { Picture } from "./picture.js";

/**
 * The names, thumbnails and answers of this tab's images, never the images themselves, so that a
 * reload loses nothing. The database also holds those of other tabs; after a day, they are deleted.
 */
const DATABASE = "visionserve";
const STORE = "pictures";
const TAB = "visionserve-tab";
const DAY = 24 * 3600 * 1000;
const MOST_KEPT = 5000;
const PAUSE = 500;
/** How long to wait for a browser whose database does not answer, in milliseconds. */
const PATIENCE = 5000;

const tab = recall("sessionStorage", TAB) ?? crypto.getRandomValues(new Uint32Array(2)).join("-");
const unsaved = new Set();
let opened, saving;

/** @returns the pictures that this tab had before it was reloaded, in order. */
export function restore() {
  return Promise.race([read(), new Promise((give) => setTimeout(give, PATIENCE, []))]);
}

async function read() {
  remember("sessionStorage", TAB, tab);
  try {
    const age = IDBKeyRange.upperBound(Date.now() - DAY);
    await change((store) => {
      store.index("time").openKeyCursor(age).onsuccess = ({ target: { result: cursor } }) => {
        if (!cursor) return;
        store.delete(cursor.primaryKey);
        cursor.continue();
      };
    });
    const store = (await open()).transaction(STORE).objectStore(STORE);
    return (await done(store.getAll(keysOfTab()))).map(toPicture);
  } catch {
    return [];
  }
}

/** Store a picture's present state, soon. */
export function keep(picture) {
  unsaved.add(picture);
  saving ??= setTimeout(save, PAUSE);
}

// Store everything at once when the page is left, if possible before the next page reads it.
for (const leaving of ["beforeunload", "pagehide"]) {
  addEventListener(leaving, () => saving && save());
}

/** Delete everything that is stored for this tab; or some pictures alone. */
export async function forget(pictures) {
  for (const picture of pictures ?? [...unsaved]) unsaved.delete(picture);
  const keys = pictures?.map(({ id }) => [tab, id]) ?? [keysOfTab()];
  await change((store) => {
    for (const key of keys) store.delete(key);
  }).catch(() => {});
}

/** @returns how many pictures are stored for other tabs, be they open or closed. */
export async function countOthers() {
  try {
    const store = (await open()).transaction(STORE).objectStore(STORE);
    const [all, own] = await Promise.all([done(store.count()), done(store.count(keysOfTab()))]);
    return all - own;
  } catch {
    return 0;
  }
}

/** Delete what is stored for other tabs. */
export async function forgetOthers() {
  const [before, after] = [
    IDBKeyRange.upperBound([tab], true),
    IDBKeyRange.lowerBound([tab, []], true),
  ];
  await change((store) => {
    store.delete(before);
    store.delete(after);
  }).catch(() => {});
}

async function save() {
  clearTimeout(saving);
  saving = undefined;
  const records = [...unsaved].filter(({ id }) => id <= MOST_KEPT).map(toRecord);
  unsaved.clear();
  await change((store) => {
    for (const record of records) store.put(record);
    store.transaction.commit();
  }).catch(() => {});
}

function toRecord({ id, name, fileSize, modified, thumbnail, copy, states }) {
  const outcomes = [...states].flatMap(([key, { answer, failure }]) => {
    if (answer) return [[key, { answer }]];
    if (!failure) return [];
    const { code, message, status } = failure;
    return [[key, { failure: { code, message, status } }]];
  });
  const sent = copy && { ...copy, file: { size: copy.file.size } };
  const time = Date.now();
  return { tab, id, name, fileSize, modified, thumbnail, copy: sent, outcomes, time };
}

function toPicture({ id, name, fileSize, modified, thumbnail, copy, outcomes }) {
  const picture = new Picture(null, name, id);
  Object.assign(picture, { fileSize, modified, thumbnail: thumbnail ?? null, copy });
  for (const [key, { answer, failure }] of outcomes) {
    if (answer) picture.states.set(key, { name: "done", answer });
    else {
      const { code, message, status } = failure;
      picture.states.set(key, { name: "failed", failure: new Failure(code, message, { status }) });
    }
  }
  return picture;
}

function keysOfTab() {
  return IDBKeyRange.bound([tab], [tab, []]);
}

async function change(action) {
  const transaction = (await open()).transaction(STORE, "readwrite");
  action(transaction.objectStore(STORE));
  await new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  });
}

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => {
      const store = request.result.createObjectStore(STORE, { keyPath: ["tab", "id"] });
      store.createIndex("time", "time");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
