-- Seconds of the system's monotonic clock. nginx's own time, and with it the expiration of entries in
-- shared dictionaries, follows the wall clock, which may be set back.

local ffi = require("ffi")

ffi.cdef([[
    typedef struct { long seconds, nanoseconds; } visionserve_time;
    int clock_gettime(int clock, visionserve_time *time);
]])

local MONOTONIC = 1
local time = ffi.new("visionserve_time")

return function()
    ffi.C.clock_gettime(MONOTONIC, time)
    return tonumber(time.seconds) + tonumber(time.nanoseconds) / 1e9
end
