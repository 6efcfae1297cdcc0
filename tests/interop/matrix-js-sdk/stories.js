// Plays all stories, in one process and one after the other.
import { after } from "node:test";
import { curtain } from "./stage.js";

import "./accounts.js";
import "./rooms.js";
import "./membership.js";
import "./messages.js";
import "./presence.js";
import "./history.js";
import "./media.js";

after(curtain);
