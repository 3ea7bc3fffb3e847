-- How many requests of one client are at the servers at a time. The others wait here.
--
-- TorchServe 0.12 answers first come, first served, and nobody knows what a request costs before it
-- was answered: a list of images takes a worker up to 8 s (`deadline_seconds`). A client's requests at
-- a server are therefore few enough that a worker is soon free for whoever else comes. With W workers
-- at the server, a client has there at most
--
--               requests of under 1 s   slower ones, or not known yet
--     alone            2 W - 1                       W
--     not alone           W                        W - 1, but 1 of a single worker
--
-- so that alone it has the whole server, and its slow requests leave a worker free for others. If
-- slow ones follow quick ones, others wait for one of them, about 8 s. With 2 W - 1 requests, each
-- worker is at work and all but one have their next request.
--
-- W is counted, not configured, because operators change it: the handler's answers name their worker.

local semaphore = require("ngx.semaphore")
local now = dofile(ngx.config.prefix() .. "clock.lua")

local turns = {}
local held, workers = ngx.shared.turns, ngx.shared.workers

local SLOW = 1 -- Seconds at the servers from which a request is slow.
local PENANCE = 60 -- A client counts as slow for so many seconds after a slow request.
local TRIAL = 10 -- A client that nobody knows counts as slow for so many seconds.
local AROUND = 30 -- Another client counts as present for so many seconds after its last request.
local ALIVE = 30 -- A worker counts for so many seconds after its last answer.
local PATIENCE = 10 -- A request waits for so many seconds.
-- The first waiting request of a client looks whether it may go, after so many seconds at first and at
-- last, so that many clients that wait take nginx little time.
local FIRST, LAST = 0.002, 0.05
local LOST = 90 -- A place held for so long is free: the process that held it has ended.
local FRESH = 0.5 -- Numbers of workers are counted anew after so many seconds.

-- Return the network that counts as one client: an IPv4 address, or the 64 bits of an IPv6 address
-- that its owner's router was given.
function turns.network(address)
    if not address:find(":", 1, true) then
        return address
    end
    local mapped = address:match("^::ffff:(%d+%.%d+%.%d+%.%d+)$")
    if mapped then
        return mapped
    end
    local head, tail = address:match("^(.-)::(.*)$")
    local groups, rest = {}, 0
    for group in (head or address):gmatch("%x+") do
        groups[#groups + 1] = tonumber(group, 16)
    end
    for _ in (tail or ""):gmatch("[%x.]+") do
        rest = rest + 1
    end
    while #groups + rest < 8 do
        groups[#groups + 1] = 0
    end
    for group in (tail or ""):gmatch("%x+") do
        groups[#groups + 1] = tonumber(group, 16)
    end
    return string.format("%x:%x:%x:%x", groups[1], groups[2], groups[3], groups[4])
end

-- Note which worker has answered a request, and of how many requests its batches are.
function turns.met(server, uri, worker)
    workers:set(server .. " " .. uri .. " " .. worker, now())
end

-- How many requests the workers for an address of a model can work on at a time (`all`), with their
-- next ones (`more`), and but for a worker of each server (`less`).
local capacities, counted = {}, -FRESH
local UNKNOWN = { all = 1, more = 1, less = 1 }

local function capacity(uri)
    if now() - counted > FRESH then
        counted, capacities = now(), {}
        local found = {}
        for _, name in ipairs(workers:get_keys(0)) do
            local at = workers:get(name)
            if at and now() - at > ALIVE then
                workers:delete(name)
            elseif at then
                local where, batch = name:match("^(%S+ %S+) %d+/(%d+)$")
                found[where] = found[where] or { number = 0, batch = tonumber(batch) }
                found[where].number = found[where].number + 1
            end
        end
        for where, of in pairs(found) do
            local served = where:match("%S+$")
            local sum = capacities[served] or { all = 0, more = 0, less = 0 }
            capacities[served] = sum
            sum.all = sum.all + of.number * of.batch
            sum.more = sum.more + (2 * of.number - 1) * of.batch
            sum.less = sum.less + math.max(1, (of.number - 1) * of.batch)
        end
    end
    return capacities[uri] or UNKNOWN
end

-- Note that a client asks now. The last one and the last other one are remembered.
function turns.note(client)
    local last = held:get("last")
    if last ~= client then
        held:set("other at", last and held:get("last at") or -AROUND)
        held:set("last", client)
    end
    held:set("last at", now())
end

local function alone(client)
    local name = held:get("last") == client and "other at" or "last at"
    return now() - (held:get(name) or -AROUND) > AROUND
end

-- Take a free place of a client.
-- Returns its name and when it was taken; nil where the client has as many as it may.
local function take(client, model, uri)
    local room, taken, oldest, free = capacity(uri), 0, 0, nil
    for number = 1, room.more do
        local place = client .. " " .. model .. " " .. number
        local since = held:get(place)
        local age = since and now() - since
        if age and age > LOST then
            held:delete(place)
            age = nil
        end
        if age then
            taken, oldest = taken + 1, math.max(oldest, age)
        else
            free = free or place
        end
    end
    local since = held:get(client .. " slow")
    local slow = oldest > SLOW or since and now() - since < PENANCE
    local places = alone(client) and (slow and room.all or room.more) or (slow and room.less or room.all)
    local began = now()
    if free and taken < places and held:add(free, began) then
        return free .. " " .. began
    end
end

-- Each client's waiting requests, in order. Those of nginx's other processes are not among them.
local lines = {}

-- Wait until a client may send a request to an address of a model.
-- Where `stuck` says that no server answers there, nobody waits: the client's requests that are at
-- the servers will tell. Where `gone` says that the client has hung up, it does not go.
-- Returns its place, which `leave` gives back; nil where its turn does not come in time, or too late.
function turns.wait(client, uri, stuck, gone)
    local model, latest = uri:match("^/%a+/([^/]+)"), now() + PATIENCE
    turns.note(client)
    local seen = held:get(client .. " seen")
    if not seen or now() - seen > AROUND then
        held:set(client .. " slow", now() - PENANCE + TRIAL)
    end
    held:set(client .. " seen", now())
    local line, own, place = lines[client] or {}, semaphore.new(), nil
    lines[client] = line
    line[#line + 1] = own
    if line[1] == own or own:wait(PATIENCE) then
        place = not gone() and take(client, model, uri)
        local step = FIRST
        while not place and now() < latest and not stuck(uri) and not gone() do
            ngx.sleep(step)
            step = math.min(LAST, 1.2 * step)
            place = not gone() and take(client, model, uri)
        end
    end
    for number, other in ipairs(line) do
        if other == own then
            table.remove(line, number)
            if number == 1 and line[1] then
                line[1]:post(1)
            end
            break
        end
    end
    if #line == 0 then
        lines[client] = nil
    end
    return place
end

-- Give a place back once the servers have answered, unless it was lost meanwhile.
function turns.leave(place)
    local name, began = place:match("^(.*) (%S+)$")
    if now() - tonumber(began) > SLOW then
        held:set(name:match("^%S+") .. " slow", now())
    end
    if tostring(held:get(name)) == began then
        held:delete(name)
    end
end

return turns
