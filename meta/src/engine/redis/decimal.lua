-- Put before the scripts that follow inode numbers from record to record.
--
-- decimal(raw, at): the 64-bit number, big endian, that begins at byte `at` of `raw`, as decimal digits.
local function decimal(raw, at)
  local b1, b2, b3, b4, b5, b6, b7, b8 = string.byte(raw, at, at + 7)
  if b1 == 0 and b2 < 32 then
    -- Below 2^53 a double is exact.
    local high = (b1 * 256 + b2) * 65536 + b3 * 256 + b4
    return string.format('%.0f', high * 4294967296 + ((b5 * 256 + b6) * 256 + b7) * 256 + b8)
  end
  -- Above (trash directories): three digits in base 10^7, byte by byte.
  local x, y, z = 0, 0, 0
  for i = at, at + 7 do
    z = z * 256 + string.byte(raw, i)
    y = y * 256 + math.floor(z / 10000000)
    z = z % 10000000
    x = x * 256 + math.floor(y / 10000000)
    y = y % 10000000
  end
  return string.format('%.0f%07.0f%07.0f', x, y, z)
end
