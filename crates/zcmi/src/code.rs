//! The code of an error whose type has been forgotten.

use std::error::Error;

/// The stable code of an error, or of the first of its sources that has one; `None` when there is none in the chain.
///
/// Where the type of the error is known, [`Coded::code`](crate::Coded::code) gives it at once. All codes are listed in
/// `docs/errors.md`, each with its cause and a next step.
///
/// ```
/// use zcmi::{Coded, Service, code_of};
///
/// let error = Service::<[u8]>::new("two words").unwrap_err();
/// assert_eq!(error.code(), "ZC3003");
/// let forgotten: Box<dyn std::error::Error> = error.into();
/// assert_eq!(code_of(&*forgotten), Some("ZC3003"));
/// ```
#[must_use]
pub fn code_of(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = zcmi_ipc::code::code_of_one(error).or_else(|| zcmi_net::code::code_of_one(error)) {
            return Some(code);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Coded as _;
    use crate::pool::{PoolPlan, SizeClass};

    #[derive(Debug, thiserror::Error)]
    #[error("behind this one is another")]
    struct Wrapper(#[source] crate::LoanError);

    #[test]
    fn the_outermost_error_with_a_code_counts() {
        let inner = crate::region::HeaderError::Magic { found: 0 };
        let outer = crate::region::RefusedRegion::Header(inner);
        assert!(outer.code() != inner.code() && code_of(&outer) == Some(outer.code()));
        let full = crate::NoRoom::WaitingFor { pid: 1, behind: 2, capacity: 3 };
        let refused = crate::PublishRefusal::NoRoom(full.clone());
        assert_eq!([refused.code(), code_of(&refused).expect("it has one")], [full.code(); 2]);
        let wrapped = Wrapper(crate::LoanError::TooLarge { bytes: 2, largest: 1 });
        assert_eq!(code_of(&wrapped), Some(crate::LoanError::TooLarge { bytes: 2, largest: 1 }.code()));
    }

    #[test]
    fn errors_of_all_crates_are_found_and_others_have_none() {
        let of_mem = PoolPlan::new(vec![SizeClass { slot_bytes: 1, slots: 1 }]).expect_err("a slot of one byte");
        assert_eq!(code_of(&of_mem), Some(of_mem.code()));
        let of_ring = zcmi_ring::PublishRefused::Full { capacity: 4 };
        assert_eq!(code_of(&of_ring), Some(of_ring.code()));
        let of_net = crate::net::transport::Closed::SessionLost;
        assert_eq!(code_of(&of_net), Some(of_net.code()));
        assert_eq!(code_of(&std::io::Error::other("no error of ours")), None);
    }
}
